"""`dnnmem batch TARGET --gpu X`: the largest batch that fits, and the one from which on a larger one gains little.

two traces --refit--> any batch --replay--> the largest that fits --virtual GPU--> it runs, and one step more does not
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.cli.batch_run import Batches

Gpu = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="The GPU; `dnnmem devices` lists them.")]
Headroom = Annotated[str, typer.Option("--headroom", metavar="SHARE", help="Memory to keep free: 5%, or 0.05.")]
Step = Annotated[int, typer.Option("--step", metavar="N", help="Batches are multiples of N.")]
Confirm = Annotated[bool, typer.Option("--confirm/--no-confirm", help="Run it on a virtual GPU.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON.")]


def batch(
    target: o.Target,
    *,
    gpu: Gpu = None,
    seq: o.Seq = None,
    headroom: Headroom = "0%",
    step: Step = 1,
    confirm: Confirm = True,
    input_: o.Inputs = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    seed: o.Seed = None,
    json: Json = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Find the largest batch that fits a GPU, and the knee of its throughput; nothing is trained."""
    from dnnmem.cli.batch_run import BatchAsked, run
    from dnnmem.cli.commands.deliver import tell_written
    from dnnmem.cli.commands.outputs import check_outputs, plan_outputs
    from dnnmem.cli.config import own_gpu
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.estimator.errors import UsageError

    gpu = gpu or own_gpu(Path.cwd())
    if gpu is None:
        raise UsageError("which GPU? --gpu is not given", hint="--gpu rtx-4090-24gb; dnnmem devices lists them")
    outputs = plan_outputs(form=None, default="table", json=json, csv=None)
    check_outputs(outputs, None)
    asked = BatchAsked(
        target=target, gpu=gpu, seq=seq, headroom=headroom, step=step, confirm=confirm, inputs=tuple(input_ or ()),
        args=tuple(arg or ()), optimizer=optimizer, seed=seed,
    )  # fmt: skip
    found = run(asked, os.environ, quiet=quiet, no_color=no_color, folder=Path.cwd())
    for output in outputs:
        text = _json(found) if output.form == "json" else _table(found)
        if output.path is None:
            sys.stdout.write(text)
        else:
            write_atomic(output.path, text)
    sys.stdout.flush()
    if not quiet:
        tell_written((), outputs)


def _table(found: Batches) -> str:
    from dnnmem.cli.render.batch import batch_text

    return batch_text(found)


def _json(found: Batches) -> str:
    import json
    from dataclasses import asdict

    return json.dumps({"schema": "dnnmem.batch/1", **asdict(found)}, indent=2) + "\n"
