"""`dnnmem export --plan plan.json --to accelerate`: a plan in the words of the framework that is to run it.

plan (and the model's blocks, if a TARGET or --block names them) -> one file's text, on stdout or in a new file
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o
from dnnmem.cli.commands.estimate import PlanFile, Set, is_rank, load_plan

if TYPE_CHECKING:
    from dnnmem.cli.commands.job import Job
    from dnnmem.cli.export.frameworks.ask import Ask
    from dnnmem.estimator.plan import Plan

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="NAME",
        help="fsdp2 (a whole script), torchrun, accelerate, deepspeed, hf-trainer, lightning, megatron or torchtitan.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE", help="A new file; one that exists is never overwritten. [default: stdout]"
    ),
]
Wanted = Annotated[
    str | None,
    typer.Argument(metavar="[TARGET]", show_default=False, help="The model, for the names of its repeated blocks."),
]
Blocks = Annotated[
    list[str] | None,
    typer.Option("--block", metavar="CLASS", help="Class of the repeated blocks, instead of TARGET. May be repeated."),
]
PerNode = Annotated[int, typer.Option("--gpus-per-node", metavar="N", help="GPUs of one machine.", min=1)]


def export(
    target: Wanted = None,
    *,
    to: To,
    plan: PlanFile = None,
    set_: Set = None,
    block: Blocks = None,
    gpus_per_node: PerNode = 8,
    batch: o.Batch = None,
    seq: o.Seq = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    out: Out = None,
    quiet: o.Quiet = False,
) -> None:
    """Write a plan as a training framework's configuration. What the framework cannot say is named, never dropped."""
    from dnnmem.cli.commands.job import prepare
    from dnnmem.cli.commands.outputs import choose
    from dnnmem.cli.export.files import check_writable, write_atomic
    from dnnmem.cli.export.frameworks import FRAMEWORKS
    from dnnmem.cli.export.frameworks.ask import Ask
    from dnnmem.estimator.errors import UsageError

    choose("--to", to, FRAMEWORKS)
    if out is not None:
        if out.exists():
            raise UsageError(f"--out {out} exists, and is not overwritten", hint="name a new file, or move the old one")
        check_writable(out, "--out")
    if plan is None and not set_:
        raise UsageError("no plan is given", hint="--plan 1 (a rank of the last recommend), --plan FILE or --set ...")
    chosen = load_plan(plan, set_ or ())
    typed = {"batch": batch, "seq": seq, "optimizer": optimizer, "device": "fake"}
    job = prepare(target, typed, os.environ, folder=Path.cwd(), args=arg or ()) if target is not None else None
    ask = Ask(plan=chosen, gpus_per_node=gpus_per_node, blocks=tuple(block or ()), source=_source(plan))
    if job is not None:
        ask = _with_model(ask, job, quiet=quiet)
    made = FRAMEWORKS[to](ask)
    if out is None:
        sys.stdout.write(made.text)
        sys.stdout.flush()
    else:
        write_atomic(out, made.text)
    if not quiet:
        sys.stderr.writelines(f"not said by {to}: {setting}\n" for setting in made.left_out)
        _tell_written(out, to, chosen, plan)


def _tell_written(out: Path | None, to: str, chosen: Plan, plan: Path | None) -> None:
    if out is None:
        return
    from dnnmem.cli.console import say_next

    sys.stderr.write(f"wrote {out}\n")
    if to == "fsdp2":
        ranks = f" --gpus {chosen.mesh.world_size} --rank 0" if chosen.mesh.world_size > 1 else ""
        say_next(f"dnnmem run{ranks}{_gpu_of(plan)} -- {out}    tries it without a GPU", quiet=False)


def _gpu_of(plan: Path | None) -> str:
    """`--gpu` of the recommendation that a rank is of; empty for a file."""
    from dnnmem.cli.recommend_store import load

    return f" --gpu {load(None, Path.cwd()).report['cluster']['gpu']}" if plan and is_rank(plan) else ""


def _with_model(ask: Ask, job: Job, *, quiet: bool) -> Ask:
    """What the job's step, which is recorded for that or was, tells of its model."""
    from dnnmem.cli.commands.profile import record
    from dnnmem.estimator.block_list import block_lists
    from dnnmem.estimator.trace import Kind

    trace, _ = record(job, quiet=quiet, no_color=False)
    found = tuple(dict.fromkeys(blocks.type for blocks in block_lists(trace)))
    nbytes = sum(s.nbytes for s in trace.storages.values() if s.kind is Kind.PARAM)
    return replace(ask, blocks=ask.blocks or found, request=job.request, param_bytes=nbytes)


def _source(plan: Path | None) -> str:
    """Where a plan is from, for people who read the file later."""
    if plan is None:
        return ""
    return f"rank {plan} of a recommendation" if is_rank(plan) else plan.name
