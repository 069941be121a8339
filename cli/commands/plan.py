"""`dnnmem plan TARGET --budget 22GiB`: what a step computes again or sends to the host, so that it fits a budget.

target --child--> trace --planners--> answers --> report with the step drawn, JSON, the plan, a script that applies it
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.cli.commands.outputs import Output
    from dnnmem.cli.plan_run import Planned
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.planners.solve import Solution

Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="SIZE", help="What PyTorch may reserve: 22GiB. [default: what the GPU offers]"),
]
PlannerName = Annotated[
    str,
    typer.Option("--planner", metavar="NAME", help="Who plans; auto picks by the model's structure, and says why."),
]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help="Which GPU: `dnnmem devices` lists them. [default: this one's]"),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="What is decided besides: precision.compute=bf16_amp. May be repeated."
    ),
]
Compare = Annotated[bool, typer.Option("--compare/--no-compare", help="Ask every planner, for the table.")]
TimeLimit = Annotated[
    float, typer.Option("--time-limit", metavar="SECONDS", help="For each planner that searches; then its best counts.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Apply the plan for real, on a virtual GPU, and measure it.")]
All = Annotated[bool, typer.Option("--all", help="A line for each block, also for those that are treated alike.")]
Apply = Annotated[
    Path | None,
    typer.Option(
        "--apply",
        metavar="FILE.py",
        help="Write Python that applies the plan; a file that exists is never overwritten.",
    ),
]
SavePlan = Annotated[
    Path | None,
    typer.Option("--save-plan", metavar="FILE", help="Write the plan as JSON, for estimate, export and dnnmem.apply."),
]
Rates = Annotated[
    Path | None, typer.Option("--rates", metavar="FILE", help="Rates of `dnnmem calibrate`. [default: packaged]")
]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write all answers as JSON.")]


def plan(
    target: o.Target,
    *,
    budget: Budget = None,
    planner: PlannerName = "auto",
    gpu: Gpu = None,
    batch: o.Batch = None,
    seq: o.Seq = None,
    set_: Set = None,
    compare: Compare = True,
    time_limit: TimeLimit = 20.0,
    verify: Verify = False,
    all_: All = False,
    input_: o.Inputs = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    seed: o.Seed = None,
    timeout: o.Timeout = None,
    rates: Rates = None,
    apply: Apply = None,
    save_plan: SavePlan = None,
    json: Json = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Plan what to compute again, or to send to the host, so that a training step fits a budget of memory.

    The batch stays as it is, and so does every gradient. `dnnmem recommend` weighs all other techniques too.
    """
    from dnnmem.cli.commands.outputs import check_outputs, plan_outputs
    from dnnmem.cli.plan_run import PlanAsked, run

    outputs = plan_outputs(form=None, default="table", json=json, csv=None)
    check_outputs(outputs, None)
    _check_new(apply, save_plan)
    asked = PlanAsked(
        target=target, budget=budget, planner=planner, gpu=gpu, batch=batch, seq=seq, settings=tuple(set_ or ()),
        compare=compare, time_limit=time_limit, verify=verify, everything=all_, inputs=tuple(input_ or ()),
        args=tuple(arg or ()), optimizer=optimizer, seed=seed, timeout=timeout, rates=rates,
    )  # fmt: skip
    found = run(asked, os.environ, quiet=quiet, no_color=no_color)
    written = _write_files(found, apply, save_plan)
    _write(found, outputs, no_color=no_color)
    sys.stdout.flush()
    if not quiet:
        from dnnmem.cli.commands.deliver import tell_written

        tell_written(written, outputs)
    _check_found(found, apply, save_plan)
    _tell_next(found, apply, verified=verify, quiet=quiet)


def _check_new(apply: Path | None, save_plan: Path | None) -> None:
    from dnnmem.cli.export.files import check_writable
    from dnnmem.estimator.errors import UsageError

    if apply is not None:
        if apply.exists():
            raise UsageError(
                f"--apply {apply} exists, and is not overwritten", hint="name a new file, or move the old one"
            )
        if apply.suffix != ".py" or not apply.stem.isidentifier():
            raise UsageError(f"--apply {apply} is no name of a Python module", hint="--apply apply_plan.py")
        check_writable(apply, "--apply")
    if save_plan is not None:
        check_writable(save_plan, "--save-plan")


def _write_files(found: Planned, apply: Path | None, save_plan: Path | None) -> list[Path]:
    import json

    from dnnmem.cli.export.files import write_atomic
    from dnnmem.estimator.plan_text import to_json

    chosen = found.chosen
    if chosen is None or chosen.plan is None:
        return []
    written = []
    if apply is not None:
        write_atomic(apply, _script(found, chosen, chosen.plan, apply))
        written.append(apply)
    if save_plan is not None:
        write_atomic(save_plan, json.dumps(to_json(chosen.plan), indent=2) + "\n")
        written.append(save_plan)
    return written


def _script(found: Planned, chosen: Solution, plan: Plan, path: Path) -> str:
    import shlex

    from dnnmem.cli.export.plan_script import script

    command = [shlex.quote(word) for word in ("dnnmem", "plan", *sys.argv[2:])]
    return script(found, chosen, plan, module=path.stem, command=command)


def _write(found: Planned, outputs: tuple[Output, ...], *, no_color: bool) -> None:
    """Files first, so that a closed pipe loses none."""
    from dnnmem.cli.export.files import write_atomic

    for form, path in sorted(outputs, key=lambda output: output.path is None):
        if form == "table":
            from dnnmem.cli.console import is_unicode, make_console
            from dnnmem.cli.render.plan import print_plan

            print_plan(found, make_console(sys.stdout, no_color=no_color), unicode=is_unicode(sys.stdout))
            continue
        from dnnmem.cli.export.plan_json import to_json

        text = to_json(found)
        sys.stdout.write(text) if path is None else write_atomic(path, text)


def _check_found(found: Planned, apply: Path | None, save_plan: Path | None) -> None:
    """Raise what kept the planners from an answer, or the files from being written."""
    from dnnmem.estimator.errors import InfeasibleError, UnsupportedError
    from dnnmem.estimator.units import format_bytes

    if found.chosen is None:
        least = found.least_bytes
        if least is None and found.error is not None:
            raise found.error
        raise InfeasibleError(
            f"no plan fits {format_bytes(found.budget_bytes)}; the least budget that one fits is {format_bytes(least)}",
            needed_bytes=least or 0,
            hint="a larger budget, a smaller --batch, or dnnmem recommend, which looks at other techniques too",
        )
    if found.chosen.plan is None and (apply is not None or save_plan is not None):
        raise UnsupportedError(
            f"no plan expresses the schedule of {found.chosen.planner}: it is predicted only, and nothing was written",
            hint="another --planner of the table",
        )


def _tell_next(found: Planned, apply: Path | None, *, verified: bool, quiet: bool) -> None:
    from dnnmem.cli.console import say_next

    if found.chosen is None or found.chosen.plan is None or found.chosen.cost == found.plain:
        return
    say_next(
        *([] if apply else ["the same with --apply apply_plan.py    Python that does it to your model"]),
        *([] if verified else ["the same with --verify    the plan really runs, on a virtual GPU"]),
        *([f"from {apply.stem} import apply_plan    before the first step of your script"] if apply else []),
        quiet=quiet,
    )
