"""`dnnmem estimate TARGET --plan FILE | --set field=value ... --cluster h100:8`: memory and time of one plan.

options -> recorded step (or a saved trace) -> passes, rates, lanes -> Estimate -> report
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dnnmem.cli.commands.outputs import Output
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.estimate import Estimate
    from dnnmem.estimator.local_step import LocalStep
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.step_time import LayerTime
    from dnnmem.estimator.time_model import TimeModel
    from dnnmem.estimator.trace import Trace

PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan", metavar="FILE|RANK", help="A plan as JSON, or a rank of the last recommend; --set changes it further."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A choice: mesh.dp_shard=8, remat.policy=full. May be repeated."),
]
ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="GPUs and their links: h100:8, dgx-a100-80gb:4 (nodes), a file of your own, my.toml[:name], "
        "or unlike GPUs, a100-80gb:4+h100:4.",
    ),
]
Model = Annotated[
    Path | None,
    typer.Option("--rates", metavar="FILE", help="Rates that `dnnmem calibrate` wrote. [default: packaged]"),
]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the whole estimate as JSON.")]
Form = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="What stdout gets: table or json. [default: table]")
]
Top = Annotated[int, typer.Option("--top", metavar="N", help="Lines of the table of layers; 0 for all.")]


def estimate(
    target: o.Target,
    *,
    cluster: ClusterName,
    plan: PlanFile = None,
    set_: Set = None,
    rates: Model = None,
    batch: o.Batch = None,
    seq: o.Seq = None,
    input_: o.Inputs = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    seed: o.Seed = None,
    timeout: o.Timeout = None,
    save: o.Save = None,
    json: Json = None,
    html: o.Html = None,
    format_: Form = None,
    top: Top = 20,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Tell how long a step takes and what it needs, run by one plan on one cluster; nothing is trained.

    The batch is one rank's micro-batch. The step is recorded without a GPU, with the kernels of the cluster's.
    """
    from dnnmem.cli.commands.deliver import tell_written
    from dnnmem.cli.commands.job import SAVED
    from dnnmem.cli.commands.outputs import check_outputs, choose, plan_outputs
    from dnnmem.estimator.local_step import check_fits
    from dnnmem.estimator.mixed_cluster import find_parts, whole

    if format_ is not None:
        choose("--format", format_, ("table", "json"))
    outputs = plan_outputs(form=format_, default="table", json=json, csv=None, html=html)
    check_outputs(outputs, save)
    parts, chosen = find_parts(cluster), load_plan(plan, set_ or ())
    where = whole(parts[0], parts)
    check_fits(chosen, where)
    if batch is None and plan is not None and not target.endswith(SAVED):
        batch = chosen.batch.micro_batch
    typed = {"batch": batch, "seq": seq, "optimizer": optimizer, "seed": seed, "timeout": timeout}
    trace = record_on(
        target, typed, where, inputs=input_, args=arg, compute=chosen.precision.compute, save=save, quiet=quiet,
        no_color=no_color,
    )  # fmt: skip
    _write(_price(trace, chosen, parts, rates or own_rates(cluster)), outputs, top=top, no_color=no_color)
    sys.stdout.flush()
    if not quiet:
        tell_written(() if save is None else (save,), outputs)


class _Priced(NamedTuple):
    """All that a report of a plan needs."""

    step: LocalStep
    model: TimeModel
    found: Estimate
    layers: tuple[LayerTime, ...]


def _write(priced: _Priced, outputs: tuple[Output, ...], *, top: int, no_color: bool) -> None:
    """Files first, so that a closed pipe loses none."""
    from dnnmem.cli.export.files import write_atomic

    for form, path in sorted(outputs, key=lambda output: output.path is None):
        if path is not None:
            write_atomic(path, _text(form, priced))
        elif form == "table":
            from dnnmem.cli.console import make_console
            from dnnmem.cli.render.estimate import print_estimate

            console = make_console(sys.stdout, no_color=no_color)
            print_estimate(priced.step.recorded, priced.found, priced.layers, console, top=top)
        else:
            sys.stdout.write(_text(form, priced))


def _text(form: str, priced: _Priced) -> str:
    if form == "html":
        from dnnmem.cli.render.html.estimate import estimate_page
        from dnnmem.estimator.step_time import time_ops

        return estimate_page(priced.found, priced.layers, priced.step, time_ops(priced.step, priced.model))
    from dnnmem.cli.export.estimate_json import to_json

    return to_json(priced.found, priced.layers)


def load_plan(path: Path | None, settings: list[str] | tuple[str, ...]) -> Plan:
    """The plan of a file or of a rank, or the default one, changed by `settings`. Raises `UsageError`."""
    import json

    from dnnmem.estimator.errors import UsageError
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.plan_text import change, from_json

    if path is None:
        return change(Plan(), settings)
    if is_rank(path):
        from dnnmem.cli.recommend_store import load

        return change(load(None, Path.cwd()).plan(int(path.name)), settings)
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--plan {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--plan {path} is not JSON: {error}") from None
    return change(from_json(_chosen(data), str(path)), settings)


def _chosen(data: object) -> object:
    """Of the answers of `dnnmem plan --json` the plan that was chosen; any other data as they are."""
    chosen = data.get("chosen") if isinstance(data, dict) and data.get("schema") == "dnnmem.planners/1" else None
    return chosen["plan"] if isinstance(chosen, dict) and chosen.get("plan") else data


def is_rank(plan: Path) -> bool:
    """Whether `--plan` names a rank of the last recommendation, as `--plan 1` does, and no file."""
    return plan.name.isdecimal() and plan == Path(plan.name) and not plan.exists()


def own_rates(cluster: str) -> Path | None:
    """The file in `my.toml[:name]` if `dnnmem calibrate` wrote it: its rates go with its machine."""
    from dnnmem.estimator.calibration_file import is_calibration

    path, dot, _ = cluster.partition(".toml")
    return Path(path + dot) if dot and is_calibration(path + dot) else None


def record_on(
    target: str,
    typed: dict[str, int | float | str | None],
    cluster: Cluster,
    *,
    inputs: list[str] | None,
    args: list[str] | None,
    compute: str | None = None,
    save: Path | None,
    quiet: bool,
    no_color: bool,
) -> Trace:
    """The target's step on the fake device with the kernels of the cluster's GPU, or the saved one.

    Args: `compute` is what the model is made to compute in before that, as `Precision.compute`.
    """
    from dataclasses import replace

    from dnnmem.cli.commands.job import SAVED, prepare
    from dnnmem.cli.commands.profile import record
    from dnnmem.estimator.trace_file import save_trace

    saved = target.endswith(SAVED)
    gpu = {} if cluster.device.vendor == "cpu" else {"gpu": cluster.device.name}
    options = typed if saved else {**typed, "device": "fake", **gpu}
    job = prepare(target, options, os.environ, folder=Path.cwd(), inputs=inputs or (), args=args or (), save=save)
    if job.request is not None:
        job = replace(job, request=replace(job.request, compute=compute))
    trace, measurement = record(job, quiet=quiet, no_color=no_color)
    if save is not None:
        save_trace(trace, measurement, save)
    return trace


def _price(trace: Trace, plan: Plan, parts: Sequence[Cluster], rates: Path | None) -> _Priced:
    from dnnmem.estimator.estimate import price
    from dnnmem.estimator.local_step import local_step
    from dnnmem.estimator.step_time import time_layers
    from dnnmem.estimator.time_model import load

    if len(parts) > 1:
        from dnnmem.estimator.mixed import estimate_mixed

        mixed = estimate_mixed(trace, plan, parts)
        layers = time_layers(mixed.step, mixed.model)
        return _Priced(step=mixed.step, model=mixed.model, found=mixed.found, layers=layers)
    [cluster] = parts
    model = load(cluster.device, rates)
    step = local_step(trace, plan, cluster)
    return _Priced(step=step, model=model, found=price(step, model), layers=time_layers(step, model))
