"""`dnnmem check [TARGET ...]`: fail if a training step needs more memory than the one that was accepted.

targets, limits -> steps measured in a child process -> judged against the baseline's file -> reports, exit code 0 or 1
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dnnmem.cli.check_request import Step
    from dnnmem.cli.check_run import Checked
    from dnnmem.estimator.baseline import Entry

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET]...",
        show_default=False,
        help="Models, as for `dnnmem profile`; without any, those of [tool.dnnmem.check].",
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option("--baseline", metavar="FILE", help="Accepted memory. [default: .dnnmem/baseline.json]"),
]
MaxIncrease = Annotated[
    str | None, typer.Option("--max-increase", metavar="SHARE", help="How much a peak may grow. [default: 2%]")
]
MaxSlowdown = Annotated[
    str | None,
    typer.Option("--max-slowdown", metavar="SHARE", help="How much longer a step may take, where time is measured."),
]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="SIZE", help="The most that a step may need in all: 22GiB.")
]
Update = Annotated[bool, typer.Option("--update-baseline", help="Accept what the steps need now.")]
Require = Annotated[bool, typer.Option("--require-baseline", help="Fail if a step has no accepted memory.")]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit XML report.")]
Sarif = Annotated[Path | None, typer.Option("--sarif", metavar="FILE", help="Write SARIF, for code scanning.")]
Markdown = Annotated[Path | None, typer.Option("--md", metavar="FILE", help="Write Markdown, for a comment.")]
Bencher = Annotated[Path | None, typer.Option("--bencher", metavar="FILE", help="Write Bencher's metric format.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the whole result as JSON.")]
Form = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", help="What stdout gets: table, json, md, junit, sarif, github or bencher."
    ),
]


def check(
    targets: Targets = None,
    *,
    batch: o.Batch = None,
    seq: o.Seq = None,
    input_: o.Inputs = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    device: o.Device = None,
    gpu: o.Gpu = None,
    seed: o.Seed = None,
    baseline: Baseline = None,
    max_increase: MaxIncrease = None,
    max_slowdown: MaxSlowdown = None,
    budget: Budget = None,
    update_baseline: Update = False,
    require_baseline: Require = False,
    format_: Form = None,
    json: Json = None,
    md: Markdown = None,
    junit: Junit = None,
    sarif: Sarif = None,
    bencher: Bencher = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Fail (exit code 1) if a training step needs more memory than was accepted, and name the layers that grew.

    The step runs without a GPU unless --device says otherwise, and needs the same bytes each time. The first run of a
    step passes with a notice; --update-baseline accepts it. Commit the baseline's file.
    """
    from dnnmem.cli.baseline_store import load_baseline
    from dnnmem.cli.check_request import prepare_check
    from dnnmem.cli.commands.check_reports import deliver, plan_reports

    typed = {"batch": batch, "seq": seq, "optimizer": optimizer, "device": device, "gpu": gpu, "seed": seed}
    limits = {"max-increase": max_increase, "max-slowdown": max_slowdown, "budget": budget}
    asked = prepare_check(
        targets or (), typed, limits, os.environ,
        folder=Path.cwd(), inputs=input_ or (), args=arg or (), baseline=baseline,
    )  # fmt: skip
    files = {"json": json, "md": md, "junit": junit, "sarif": sarif, "bencher": bencher}
    outputs = plan_reports(format_, files)
    accepted = load_baseline(asked.baseline) or {}
    found = _measure(asked.steps, accepted, update=update_baseline, quiet=quiet, no_color=no_color)
    _accept(found, asked.baseline, wanted=update_baseline, quiet=quiet)
    deliver(found, outputs, os.environ, no_color=no_color)
    _raise(found, asked.baseline, require=require_baseline)


def _accept(found: Sequence[Checked], baseline: Path, *, wanted: bool, quiet: bool) -> None:
    """Write what was measured, if that is wanted, and say so."""
    from dnnmem.cli.baseline_store import update_baseline

    measured = [step.verdict.entry for step in found if step.verdict is not None]
    if wanted and measured:
        update_baseline(baseline, measured)
        sys.stderr.write("" if quiet else f"wrote {baseline}; steps accepted: {len(measured)}\n")


def _measure(
    steps: Sequence[Step], accepted: Mapping[str, Entry], *, update: bool, quiet: bool, no_color: bool
) -> list[Checked]:
    from dnnmem.cli.check_run import check_steps
    from dnnmem.cli.progress import listening

    with listening(sys.stderr, quiet=quiet, no_color=no_color) as listeners:
        return check_steps(
            steps,
            accepted,
            update=update,
            on_output=listeners.on_output,
            on_done=listeners.on_progress,
        )


def _raise(found: Sequence[Checked], baseline: Path, *, require: bool) -> None:
    """End with the error that decides the exit code, if there is one: what could not be measured goes first."""
    from copy import copy

    from dnnmem.estimator.errors import RegressionError, UsageError

    for step in found:
        if step.error is not None:
            told = copy(step.error)
            told.message = f"{step.name}: {told.message}" if len(found) > 1 else told.message
            raise told
    failing = [step for step in found if step.fails]
    if failing:
        mend = "mend the layers named above, or accept it: dnnmem check --update-baseline"
        over = all(step.verdict is not None and step.verdict.over_budget for step in failing)
        raise RegressionError(
            f"{len(failing)} of {len(found)} steps need more than is allowed: {', '.join(s.name for s in failing)}",
            hint="make the step smaller, or give it a larger --budget" if over else mend,
        )
    new = [step.name for step in found if step.verdict is not None and step.verdict.before is None]
    if require and new and not any(step.accepted for step in found):
        raise UsageError(
            f"{baseline} accepts nothing for {', '.join(new)} under these conditions",
            hint="dnnmem check --update-baseline, and commit the file",
        )
