"""`dnnmem run -- train.py ARGS`: what an unmodified training script needs on a GPU that need not be here.

options, environment, file -> RunJob -> one child for each rank -> RankResults; a second child records the last step
-> Trace -> Profile; both -> reports. Exit code 1 if a rank runs out of memory, 3 if the script fails.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.cli.commands.run_job import RunJob
    from dnnmem.cli.commands.run_record import Profiles
    from dnnmem.profilers.script_result import RankResult

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="-- SCRIPT [ARGS]...",
        show_default=False,
        help="What to run: train.py ARGS, -m package.train ARGS, or what starts it: torchrun, accelerate, deepspeed.",
    ),
]
Gpus = Annotated[int | None, typer.Option("--gpus", metavar="N", help="GPUs of the job, one rank each. [default: 1]")]
Rank = Annotated[
    str | None,
    typer.Option("--rank", metavar="R", help="Ranks to run: 0, first,last or all; one needs no others. [default: 0]"),
]
Steps = Annotated[int, typer.Option("--steps", metavar="N", help="End the run after so many training steps.")]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this long.")]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Memory of each GPU, where it is not the card's own: 95GiB."),
]
Gpu = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="The GPU to run on. [default: h100-sxm-80gb]")]
Layers = Annotated[
    bool, typer.Option("--layers/--no-layers", help="Record the last step in a second run, for what each layer needs.")
]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the whole result as JSON.")]


def run(
    words: Words = None,
    *,
    gpu: Gpu = None,
    gpus: Gpus = None,
    rank: Rank = None,
    steps: Steps = 3,
    timeout: Timeout = None,
    memory: Memory = None,
    json: Json = None,
    save: o.Save = None,
    layers: Layers = True,
    depth: o.Depth = None,
    everything: o.All = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> int:
    """Run a training script, unchanged, on GPUs that need not be here: what each rank needs, and where it runs out.

    Everything after the options belongs to the script. Allocator settings in PYTORCH_ALLOC_CONF hold as on a real GPU.
    """
    from dnnmem.cli.cache import cache_folder
    from dnnmem.cli.commands.outputs import check_outputs
    from dnnmem.cli.commands.run_job import prepare_run

    typed = {"gpu": gpu, "timeout": timeout, "depth": depth}
    job = prepare_run(
        words or (), typed, os.environ, folder=Path.cwd(), gpus=gpus, rank=rank, steps=steps, memory=memory, json=json,
        save=save, layers=layers, everything=everything, cache=cache_folder(os.environ),
    )  # fmt: skip
    check_outputs(job.outputs, job.save)
    results, profiles = _run(job, quiet=quiet, no_color=no_color)
    _deliver(job, results, profiles, quiet=quiet, no_color=no_color)
    return _exit_code(results)


def _run(job: RunJob, *, quiet: bool, no_color: bool) -> tuple[tuple[RankResult, ...], Profiles]:
    """Run the script once for each rank, and once more to record them."""
    from dnnmem.cli.cache import cache_folder
    from dnnmem.cli.commands.run_record import record
    from dnnmem.cli.progress import listening
    from dnnmem.profilers.ranks import run_script

    cache = cache_folder(os.environ)
    with listening(sys.stderr, quiet=quiet, no_color=no_color) as listeners:
        results = run_script(
            job.run, os.environ, cache=cache, on_output=listeners.on_output, on_progress=listeners.on_progress
        )
    results = (replace(results[0], notes=(*job.notes, *results[0].notes)), *results[1:])
    return record(job, results, os.environ, cache=cache) if job.layers else (results, {})


def _deliver(job: RunJob, results: tuple[RankResult, ...], profiles: Profiles, *, quiet: bool, no_color: bool) -> None:
    """Write every report that was asked for; files first, so that a closed pipe loses none."""
    from dnnmem.cli.commands.run_record import saved_as
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.export.run_json import to_json

    for form, path in sorted(job.outputs, key=lambda output: output.path is None):
        if form == "table":
            _print_table(job, results, profiles, no_color=no_color)
            continue
        text = to_json(job.words, job.run, results, profiles)
        if path is None:
            sys.stdout.write(text)
        else:
            write_atomic(path, text)
    sys.stdout.flush()
    if not quiet:
        kept = [saved_as(job, rank, first=rank == next(iter(profiles))) for rank in profiles]
        written = [*kept, *(path for _, path in job.outputs)]
        sys.stderr.writelines(f"wrote {path}\n" for path in written if path is not None)


def _print_table(job: RunJob, results: tuple[RankResult, ...], profiles: Profiles, *, no_color: bool) -> None:
    from dnnmem.cli.console import is_unicode, make_console
    from dnnmem.cli.render.ranks import print_ranks
    from dnnmem.cli.render.report import View

    view = View(depth=job.depth, everything=job.everything, unicode=is_unicode(sys.stdout))
    console = make_console(sys.stdout, no_color=no_color)
    print_ranks(job.words, job.run, results, profiles, console=console, view=view)


def _exit_code(results: tuple[RankResult, ...]) -> int:
    """0 if all ran, 1 if one runs out of memory; raises `ModelError` for a script that fails or takes too long."""
    from dnnmem.estimator.errors import ModelError

    if any(result.outcome == "out_of_memory" for result in results):
        return 1
    for result in results:
        if result.outcome in {"failed", "timed_out"}:
            who = "" if result.rank is None or len(results) == 1 else f" (rank {result.rank})"
            hint = "a longer --timeout, or fewer --steps" if result.outcome == "timed_out" else ""
            if not hint and len(results) < result.world_size:
                done = f"after {result.steps} steps; " if result.steps else ""
                hint = f"{done}what it heard from other ranks was made up: --rank all runs them all, if they are few"
            raise ModelError(f"the script failed{who}:\n{result.message}", hint=hint)
    return 0
