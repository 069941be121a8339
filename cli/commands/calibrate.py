"""`dnnmem calibrate`: the rates of a machine, from measurements on it or from steps of one's own that ran on it.

dnnmem calibrate                                    the machine at hand, by single operators     -> a machine's file
dnnmem calibrate --from steps.csv                   one to three measured steps, or more         -> a file of rates
dnnmem calibrate TARGET ... --seconds S | --log F   one step named on the command line           -> a file of rates
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnnmem.cli.commands import options as o
from dnnmem.cli.commands.estimate import Model, Set

if TYPE_CHECKING:
    from dnnmem.estimator.local_step import LocalStep
    from dnnmem.estimator.measured_steps import MeasuredStep
    from dnnmem.estimator.time_model import TimeModel

Target = Annotated[
    str | None,
    typer.Argument(metavar="[TARGET]", show_default=False, help="A step that was measured: what it trained."),
]
From = Annotated[
    Path | None,
    typer.Option("--from", metavar="FILE", help="Measured steps: target,batch,seq,args,set,cluster,seconds."),
]
Seconds = Annotated[float | None, typer.Option("--seconds", metavar="S", help="TARGET's measured step time.")]
Log = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="A training log that tells TARGET's step time.")
]
ClusterName = Annotated[
    str, typer.Option("--cluster", metavar="NAME", help="Where the steps ran, as for `dnnmem estimate`.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="What is written. [default: rates.toml]")]
DeviceName = Annotated[
    str, typer.Option("--device", metavar="NAME", help="What is measured: auto, cpu, cuda or virtual.")
]
GpuName = Annotated[
    str | None, typer.Option("--gpu", metavar="NAME", help="The GPU here, if its own name is not known.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Run each measurement once and write nothing.")]
RATES, MACHINE = Path("rates.toml"), Path("machine.toml")
"""What is written where nobody says."""


def calibrate(
    target: Target = None,
    *,
    from_: From = None,
    seconds: Seconds = None,
    log: Log = None,
    cluster: ClusterName = "",
    set_: Set = None,
    rates: Model = None,
    batch: o.Batch = None,
    seq: o.Seq = None,
    input_: o.Inputs = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    device: DeviceName = "auto",
    gpu: GpuName = None,
    dry_run: DryRun = False,
    out: Out = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Measure this machine, or fit the rates to measured steps; writes a file for `dnnmem estimate`."""
    from dnnmem.cli.export.files import check_writable
    from dnnmem.estimator.errors import UsageError

    steps_given = target is not None or from_ is not None
    path = out or (RATES if steps_given else MACHINE)
    if target is not None and (from_ is not None or (seconds is None) == (log is None)):
        raise UsageError("a TARGET needs one of --seconds and --log, and no --from", hint="dnnmem calibrate --help")
    if not steps_given and (seconds is not None or log is not None):
        raise UsageError("--seconds and --log belong to a TARGET", hint="dnnmem calibrate model.py --seconds 0.4")
    if not dry_run:
        check_writable(path, "--out")
    if not steps_given:
        measure_machine(device, gpu, path, dry_run=dry_run, quiet=quiet, no_color=no_color)
        return
    from dnnmem.estimator.measured_steps import MeasuredStep

    if from_ is not None:
        rows = read_steps(from_)
    else:
        typed = {"batch": batch, "seq": seq, "optimizer": optimizer, "seconds": seconds, "log": str(log or "")}
        given = {"args": tuple(arg or ()), "settings": tuple(set_ or ()), "inputs": tuple(input_ or ())}
        known: dict[str, Any] = {**typed, **given}
        rows = [MeasuredStep(target=str(target), **known)]
    rows = [row if row.cluster else replace(row, cluster=cluster) for row in rows]
    fit_steps(rows, path, rates, dry_run=dry_run, quiet=quiet, no_color=no_color)


def read_steps(path: Path) -> list[MeasuredStep]:
    """The rows of a CSV file, its logs found beside it. Raises `UsageError`."""
    from dnnmem.estimator.measured_steps import parse_steps
    from dnnmem.estimator.toml_values import read_file

    rows = parse_steps(read_file(str(path)), str(path))
    return [replace(row, log=str(path.parent / row.log)) if row.log else row for row in rows]


def fit_steps(
    rows: list[MeasuredStep], out: Path, rates: Path | None, *, dry_run: bool, quiet: bool, no_color: bool
) -> None:
    """Record and prepare the steps, fit the rates, write and tell them. Raises `UsageError`."""
    from dnnmem.cli.console import make_console
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.render.calibration import print_calibration
    from dnnmem.estimator.calibration import PARAMETERS, fit
    from dnnmem.estimator.calibration_file import write_calibration

    prepared = [prepare_step(row, quiet=quiet, no_color=no_color) for row in rows]
    model = one_model(prepared, rows, rates)
    found = fit(prepared, [_seconds(row, step) for row, step in zip(rows, prepared, strict=True)], model)
    print_calibration(rows, found, make_console(sys.stdout, no_color=no_color))
    if dry_run:
        return
    values = {name: getattr(found.model, name) for name in PARAMETERS if getattr(found.model, name)}
    spreads = {f"spread_{kind}": value for kind, value in found.model.spread.items()}
    said = [f"Written by dnnmem calibrate from {len(rows)} measured steps on {prepared[0].cluster.device.name}."]
    write_atomic(out, write_calibration({}, {}, {**values, **spreads}, found.model.curves, said))
    if not quiet:
        sys.stderr.write(f"wrote {out}; use it: dnnmem estimate TARGET --cluster NAME --rates {out}\n")


def one_model(prepared: list[LocalStep], rows: list[MeasuredStep], rates: Path | None) -> TimeModel:
    """The packaged rates of the one GPU that all steps ran on. Raises `UsageError` where they are several."""
    from dnnmem.cli.commands.estimate import own_rates
    from dnnmem.estimator.errors import UsageError
    from dnnmem.estimator.time_model import load

    devices = {step.cluster.device.name: step.cluster.device for step in prepared}
    if len(devices) > 1:
        raise UsageError(
            f"the steps ran on {', '.join(devices)}; rates are those of one GPU", hint="calibrate each alone"
        )
    return load(prepared[0].cluster.device, rates or own_rates(rows[0].cluster))


def prepare_step(row: MeasuredStep, *, quiet: bool, no_color: bool) -> LocalStep:
    """Record a measured step without a GPU and rewrite it by its plan. Raises `UsageError`."""
    from dnnmem.cli.commands.estimate import load_plan, record_on
    from dnnmem.estimator.cluster import find_cluster
    from dnnmem.estimator.errors import UsageError
    from dnnmem.estimator.local_step import local_step

    if not row.cluster:
        raise UsageError(f"{row.target}: where did it run?", hint="--cluster h100:8, or a column cluster")
    where = find_cluster(row.cluster)
    typed: dict[str, int | float | str | None] = {"batch": row.batch, "seq": row.seq, "optimizer": row.optimizer}
    trace = record_on(
        row.target,
        typed,
        where,
        inputs=list(row.inputs),
        args=list(row.args),
        save=None,
        quiet=quiet,
        no_color=no_color,
    )
    return local_step(trace, load_plan(None, row.settings), where)


def _seconds(row: MeasuredStep, step: LocalStep) -> float:
    """Seconds of a measured step; by a log of tokens per second, those of one GPU, as torchtitan counts them."""
    if row.seconds is not None:
        return row.seconds
    from dnnmem.estimator.step_log import read_log
    from dnnmem.estimator.toml_values import read_file

    batch, plan = step.recorded.batch, step.plan
    samples = int(batch.get("batch_size", 1)) * plan.batch.accumulation / (plan.mesh.tp * plan.mesh.pp * plan.mesh.cp)
    length = batch.get("seq_len")
    return read_log(read_file(row.log)).seconds_of(samples * int(length) if length else None)


def measure_machine(device: str, gpu: str | None, out: Path, *, dry_run: bool, quiet: bool, no_color: bool) -> None:
    """Measure this machine and write its file. Raises `UsageError`, `UnsupportedError`, `ModelError`."""
    from dnnmem.cli.cache import cache_folder
    from dnnmem.cli.commands.outputs import choose
    from dnnmem.cli.console import make_console
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.render.calibration import print_machine
    from dnnmem.estimator.devices import find_device
    from dnnmem.estimator.errors import UsageError
    from dnnmem.profilers.calibrate import DEVICES, measure
    from dnnmem.profilers.calibrate_spec import spec_text

    if choose("--device", device, DEVICES) == "virtual" and not dry_run:
        raise UsageError(
            "times on the virtual GPU mean nothing, so no file is written",
            hint="--dry-run rehearses the measurements there",
        )
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    with _progress(quiet=quiet, no_color=no_color) as tell:
        found = measure(
            device, os.environ, ranks=ranks, quick=dry_run, cache=cache_folder(os.environ), on_progress=tell
        )
    if os.environ.get("RANK", "0") != "0":
        return
    found["ranks"] = ranks
    machine = found["machine"]
    known = None if machine["vendor"] == "cpu" else find_device(gpu or machine["name"])
    print_machine(found, make_console(sys.stdout, no_color=no_color))
    if dry_run:
        return
    said = [f"Written by dnnmem calibrate: {machine['name']}, {machine['units']} {'units' if known else 'threads'}."]
    write_atomic(out, spec_text(found, known, said))
    if not quiet:
        sys.stderr.write(f"wrote {out}; use it: dnnmem estimate TARGET --cluster {out}\n")


@contextmanager
def _progress(*, quiet: bool, no_color: bool) -> Iterator[Callable[[int, int], None]]:
    """A line on stderr that changes, where stderr is a terminal."""
    from dnnmem.cli.console import is_terminal, make_console

    if quiet or not is_terminal(sys.stderr):
        yield lambda _done, _count: None
        return
    from rich.progress import Progress

    with Progress(console=make_console(sys.stderr, no_color=no_color), transient=True) as line:
        task = line.add_task("measuring", total=None)
        yield lambda done, count: line.update(task, completed=done, total=count)
