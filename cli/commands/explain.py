"""`dnnmem explain RANK|FILE`: one plan of the last recommendation in full, and what one other choice would make of it.

.dnnmem/recommend --rank, --what-if--> Plan --> Estimate, layers --> the report of `dnnmem estimate`

A file holds a plan (`dnnmem plan --save-plan`, `--json`), which is done to the step that was recommended for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.cli.recommend_store import Kept
    from dnnmem.estimator.estimate import Estimate
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.step_time import LayerTime
    from dnnmem.estimator.trace import Trace

Rank = Annotated[
    str,
    typer.Argument(
        metavar="RANK|FILE", help="Of the last recommendation, 0 being your step as it is; or a plan's file."
    ),
]
WhatIf = Annotated[
    list[str] | None,
    typer.Option("--what-if", metavar="FIELD=VALUE", help="Another choice: remat.policy=none. May be repeated."),
]
From = Annotated[
    Path | None, typer.Option("--from", metavar="DIR", help="Where it was kept. [default: .dnnmem/recommend]")
]
PlanOut = Annotated[Path | None, typer.Option("--plan-out", metavar="FILE", help="Write the plan as JSON.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the whole estimate as JSON.")]
Top = Annotated[int, typer.Option("--top", metavar="N", help="Lines of the table of layers; 0 for all.")]


def explain(
    rank: Rank = "1",
    *,
    what_if: WhatIf = None,
    from_: From = None,
    plan_out: PlanOut = None,
    json: Json = None,
    top: Top = 20,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Show one plan of the last `dnnmem recommend` in full: memory, lanes, kinds of work, layers."""
    from dnnmem.cli.commands.deliver import tell_written
    from dnnmem.cli.commands.outputs import check_outputs, plan_outputs
    from dnnmem.cli.console import say_next
    from dnnmem.cli.export.estimate_json import to_json
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.recommend_store import load
    from dnnmem.estimator.plan_text import change
    from dnnmem.estimator.plan_text import to_json as plan_json

    outputs = plan_outputs(form=None, default="table", json=json, csv=None)
    check_outputs(outputs, None)
    kept = load(from_, Path.cwd())
    plan, title = _named(kept, rank)
    other = change(plan, what_if) if what_if else None
    trace, found, layers = _price(kept, other or plan)
    for output in outputs:
        if output.form == "json":
            text = to_json(found, layers)
            sys.stdout.write(text) if output.path is None else write_atomic(output.path, text)
        else:
            _print(kept, trace, found, layers, (plan, other), title=title, top=top, no_color=no_color)
    sys.stdout.flush()
    written = []
    if plan_out is not None:
        import json as json_

        write_atomic(plan_out, json_.dumps(plan_json(other or plan), indent=2) + "\n")
        written.append(plan_out)
    if not quiet:
        tell_written(written, outputs)
        say_next(
            f"dnnmem explain {rank} --what-if FIELD=VALUE    what another choice makes of it",
            f"dnnmem export TARGET --plan {rank} --to fsdp2 -o train.py    the plan as a script",
            quiet=quiet or what_if is not None,
        )


def _named(kept: Kept, rank: str) -> tuple[Plan, str]:
    """The plan that is meant, and what it is in a sentence. Raises `UsageError`."""
    if rank.isdecimal():
        row = kept.row(int(rank))
        return kept.plan(int(rank)), f"Plan {rank}: {', '.join(row['techniques']) or 'the step as it is'}. {row['why']}"
    from dnnmem.cli.commands.estimate import load_plan
    from dnnmem.estimator.plan_text import change, settings

    own = settings(load_plan(Path(rank), ()))
    return change(kept.plan(0), own), f"Plan of {rank}: {' '.join(own) or 'the step as it is'}"


def _price(kept: Kept, plan: Plan) -> tuple[Trace, Estimate, tuple[LayerTime, ...]]:
    from dnnmem.estimator.cluster import find_cluster
    from dnnmem.estimator.estimate import price
    from dnnmem.estimator.local_step import local_step
    from dnnmem.estimator.step_time import time_layers
    from dnnmem.estimator.time_model import load

    cluster = find_cluster(kept.report["cluster"]["name"])
    trace, model = kept.trace(plan.batch.micro_batch, plan.precision.compute), load(cluster.device, kept.rates)
    step = local_step(trace, plan, cluster, kept.layers)
    return trace, price(step, model), time_layers(step, model)


def _print(
    kept: Kept,
    trace: Trace,
    found: Estimate,
    layers: tuple[LayerTime, ...],
    plans: tuple[Plan, Plan | None],
    *,
    title: str,
    top: int,
    no_color: bool,
) -> None:
    from dnnmem.cli.console import make_console
    from dnnmem.cli.render.estimate import print_estimate
    from dnnmem.cli.render.what_if import print_difference

    console = make_console(sys.stdout, no_color=no_color)
    console.print(f"{title}\n")
    print_estimate(trace, found, layers, console, top=top)
    plan, other = plans
    if other is not None:
        print_difference(_price(kept, plan)[1], found, console)
