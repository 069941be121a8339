"""`dnnmem profile TARGET`: where every byte and second of one training step goes.

options, environment, file -> Job -> child process (or a saved trace) -> Trace, Measurement -> Profile -> reports
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.cli.commands.job import Job
    from dnnmem.estimator.profile import Measurement
    from dnnmem.estimator.trace import Trace


def profile(
    target: o.Target,
    *,
    batch: o.Batch = None,
    seq: o.Seq = None,
    input_: o.Inputs = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    device: o.Device = None,
    gpu: o.Gpu = None,
    steps: o.Steps = None,
    seed: o.Seed = None,
    repeats: o.Repeats = None,
    timeout: o.Timeout = None,
    format_: o.Format = None,
    json: o.Json = None,
    csv: o.Csv = None,
    html: o.Html = None,
    save: o.Save = None,
    depth: o.Depth = None,
    everything: o.All = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Show where every byte and every second of one training step goes.

    Defaults of the options may stand in [tool.dnnmem] of pyproject.toml or in dnnmem.toml; DNNMEM_BATCH and the like in
    the environment go before the file, and the command line before both.
    """
    from dnnmem.cli.commands.job import prepare
    from dnnmem.cli.commands.outputs import check_outputs

    typed = {
        "batch": batch, "seq": seq, "optimizer": optimizer, "device": device, "gpu": gpu, "steps": steps,
        "seed": seed, "repeats": repeats, "timeout": timeout, "format": format_, "depth": depth,
    }  # fmt: skip
    job = prepare(
        target, typed, os.environ, folder=Path.cwd(), inputs=input_ or (), args=arg or (), json=json, csv=csv,
        html=html, save=save, everything=everything,
    )  # fmt: skip
    check_outputs(job.outputs, job.save)
    _deliver(job, *record(job, quiet=quiet, no_color=no_color), quiet=quiet, no_color=no_color)
    if job.request is not None:
        _tell_next(target, batch, quiet=quiet)


def _tell_next(target: str, batch: int | None, *, quiet: bool) -> None:
    from dnnmem.cli.console import say_next

    same = "" if batch is None else f" --batch {batch}"
    say_next(
        f"dnnmem recommend {target}{same} --gpus 8 --gpu h100    the best ways to run it there",
        "the same with --html step.html    a page to look into",
        quiet=quiet,
    )


def record(job: Job, *, quiet: bool, no_color: bool) -> tuple[Trace, Measurement]:
    """Record the job's step in a child process, or load it."""
    if job.request is None:
        from dnnmem.estimator.trace_file import load_trace

        return load_trace(job.target)
    from dnnmem.cli.cache import cache_folder
    from dnnmem.cli.progress import listening
    from dnnmem.profilers.run import run

    with listening(sys.stderr, quiet=quiet, no_color=no_color) as listeners:
        return run(
            job.request,
            timeout=job.timeout_seconds,
            gpu=job.device,
            cache=cache_folder(os.environ),
            on_output=listeners.on_output,
            on_progress=listeners.on_progress,
        )


def _deliver(job: Job, trace: Trace, measurement: Measurement, *, quiet: bool, no_color: bool) -> None:
    """Save the trace, then write the reports."""
    from dnnmem.cli.commands.deliver import Delivery, deliver

    if job.save is not None:
        from dnnmem.estimator.trace_file import save_trace

        save_trace(trace, measurement, job.save)
    to = Delivery(
        outputs=job.outputs,
        device=job.device,
        depth=job.depth,
        everything=job.everything,
        quiet=quiet,
        no_color=no_color,
        written=() if job.save is None else (job.save,),
    )
    deliver(trace, measurement, to)
