"""`dnnmem recommend TARGET --gpus 8`: the best plans for a step on a platform, ranked, with the reasons.

target --child--> traces at several micro-batches --search--> Report --> table, JSON, plan files; kept for `explain`
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
    from dnnmem.estimator.report import Report

Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="How many GPUs; above one node, whole nodes.")]
Gpu = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="Which: `dnnmem devices` lists them. [default: this one's]")
]
ClusterName = Annotated[
    str | None,
    typer.Option("--cluster", metavar="NAME", help="In the place of --gpu and --gpus: dgx-h100:4, my.toml[:name]."),
]
GlobalBatch = Annotated[
    int | None,
    typer.Option("--global-batch", metavar="N", help="Samples of a step, all GPUs. [default: --batch on every GPU]"),
]
Tokens = Annotated[int | None, typer.Option("--tokens", metavar="N", help="The same in tokens; --seq says how long.")]
Objective = Annotated[
    str, typer.Option("--objective", metavar="NAME", help="throughput, cost, memory or time-to-train.")
]
MostTechniques = Annotated[
    int | None, typer.Option("--max-techniques", metavar="N", help="Plans of no more techniques than N.")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="Use these only: zero3, remat, fused.")]
Without = Annotated[list[str] | None, typer.Option("--without", metavar="NAME", help="Leave these out.")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="NAME", help="Also what changes training: precision, optimizer."),
]
Headroom = Annotated[str, typer.Option("--headroom", metavar="SHARE", help="Memory to keep free: 5%, or 0.05.")]
Top = Annotated[int, typer.Option("--top", metavar="N", help="Candidates that are told.")]
Verify = Annotated[
    int, typer.Option("--verify", metavar="K", help="Apply the K best for real, on a virtual GPU, and measure them.")
]
Executor = Annotated[
    str, typer.Option("--executor", metavar="NAME", help="What runs them: process, ray or dask (a cluster's machines).")
]
All = Annotated[bool, typer.Option("--all", help="A line for each plan, also for those that are alike.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the whole report as JSON.")]
Plans = Annotated[
    Path | None, typer.Option("--save-plans", metavar="DIR", help="Write each plan as DIR/plan-RANK.json.")
]
Rates = Annotated[
    Path | None, typer.Option("--rates", metavar="FILE", help="Rates of `dnnmem calibrate`. [default: packaged]")
]


def recommend(
    target: o.Target,
    *,
    gpus: Gpus = 1,
    gpu: Gpu = None,
    cluster: ClusterName = None,
    batch: o.Batch = None,
    seq: o.Seq = None,
    global_batch: GlobalBatch = None,
    tokens: Tokens = None,
    objective: Objective = "throughput",
    max_techniques: MostTechniques = None,
    only: Only = None,
    without: Without = None,
    allow: Allow = None,
    headroom: Headroom = "5%",
    top: Top = 10,
    verify: Verify = 0,
    executor: Executor = "process",
    all_: All = False,
    input_: o.Inputs = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    seed: o.Seed = None,
    timeout: o.Timeout = None,
    rates: Rates = None,
    json: Json = None,
    html: o.Html = None,
    save_plans: Plans = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Rank the ways to run a training step on some GPUs, by what they need and how fast they are; nothing is trained.

    --batch is what a GPU takes now. What changes the mathematics of training is left out unless --allow names it.
    """
    from dnnmem.cli.config import own_gpu
    from dnnmem.cli.recommend_run import Asked, ask, run

    outputs = _outputs(json, html)
    asked = ask(Asked(
        target=target, gpus=gpus, gpu=gpu or (None if cluster else own_gpu(Path.cwd())), cluster=cluster, batch=batch,
        seq=seq, global_batch=global_batch, tokens=tokens, objective=objective, max_techniques=max_techniques,
        only=_names(only), without=_names(without), allow=_names(allow), headroom=headroom, top=top, verify=verify,
        executor=executor, inputs=tuple(input_ or ()), args=tuple(arg or ()), optimizer=optimizer, seed=seed,
        timeout=timeout, rates=rates,
    ))  # fmt: skip
    report, kept = run(asked, os.environ, quiet=quiet, no_color=no_color)
    _write(report, outputs, save_plans, all_=all_, quiet=quiet, no_color=no_color)
    _tell_next(target, kept, verify=verify, quiet=quiet)


def _outputs(json: str | None, html: str | None) -> tuple[Output, ...]:
    from dnnmem.cli.commands.outputs import check_outputs, plan_outputs

    outputs = plan_outputs(form=None, default="table", json=json, csv=None, html=html)
    check_outputs(outputs, None)
    return outputs


def _tell_next(target: str, kept: Path | None, *, verify: int, quiet: bool) -> None:
    from dnnmem.cli.commands.job import SAVED
    from dnnmem.cli.console import say_next

    if kept is None:
        return
    model = "" if target.endswith(SAVED) else f"{target} "
    say_next(
        "dnnmem explain 1    plan 1 in full; --what-if FIELD=VALUE varies it",
        f"dnnmem export {model}--plan 1 --to fsdp2 -o train.py    or --to accelerate, ...",
        *(["the same with --verify 3    the best three really run on a virtual GPU"] if model and not verify else []),
        quiet=quiet,
    )


def _names(given: list[str] | None) -> frozenset[str]:
    return frozenset(name.strip() for some in given or () for name in some.split(",") if name.strip())


def _save_plans(report: Report, folder: Path | None) -> list[Path]:
    import json

    from dnnmem.cli.export.files import write_atomic
    from dnnmem.estimator.plan_text import to_json

    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for candidate in report.candidates:
        path = folder / f"plan-{candidate.rank}.json"
        write_atomic(path, json.dumps(to_json(candidate.estimate.plan), indent=2) + "\n")
        written.append(path)
    return written


def _write(
    report: Report, outputs: tuple[Output, ...], plans: Path | None, *, all_: bool, quiet: bool, no_color: bool
) -> None:
    """Files first, so that a closed pipe loses none."""
    from dnnmem.cli.commands.deliver import tell_written
    from dnnmem.cli.export.files import write_atomic

    written = _save_plans(report, plans)
    for output in sorted(outputs, key=lambda output: output.path is None):
        if output.form == "table":
            from dnnmem.cli.console import make_console
            from dnnmem.cli.render.recommend import print_report

            print_report(report, make_console(sys.stdout, no_color=no_color), all_=all_)
            continue
        text = _text(output.form, report)
        if output.path is None:
            sys.stdout.write(text)
        else:
            write_atomic(output.path, text)
    sys.stdout.flush()
    if not quiet:
        tell_written(written, outputs)


def _text(form: str, report: Report) -> str:
    if form == "html":
        from dnnmem.cli.render.html.recommend import recommend_page

        return recommend_page(report)
    from dnnmem.cli.export.recommend_json import to_json

    return to_json(report)
