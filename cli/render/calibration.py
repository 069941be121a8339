"""A calibration on a page: what was measured of a machine, or which rates a site's steps moved and how far.

step                 measured   before            after
gpt.py batch 8       131.0 ms   118.2 ms  -9.8 %  129.5 ms  -1.1 %
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dnnmem.cli.render.rich_text import plain

if TYPE_CHECKING:
    from rich.console import Console

    from dnnmem.estimator.calibration import Calibration
    from dnnmem.estimator.measured_steps import MeasuredStep

_MOST_PARAMETERS = 12


def print_calibration(rows: Sequence[MeasuredStep], found: Calibration, console: Console) -> None:
    """The steps before and after, then the parameters that moved or became surer."""
    steps = _table("step", "measured", "before", "", "after", "")
    for row, measured, before, after in zip(rows, found.measured, found.before, found.after, strict=True):
        steps.add_row(
            _name(row), _time(measured), _time(before), _off(before, measured), _time(after), _off(after, measured)
        )
    parameters = _table("parameter", "before", "", "after", "")
    for one in found.parameters[:_MOST_PARAMETERS]:
        parameters.add_row(
            one.name,
            f"{one.before:.3g}",
            f"±{one.spread_before:.0%}",
            f"{one.after:.3g}",
            f"±{one.spread_after:.0%}",
        )
    for table in (steps, parameters):
        _show(table, console)


def print_machine(found: Mapping[str, Any], console: Console) -> None:
    """What was measured of a machine, in a few lines; of a rehearsal only what was run."""
    machine = found["machine"]
    table = _table("", "")
    table.add_row(
        "machine", f"{machine['name']}, {machine['units']} {'threads' if machine['vendor'] == 'cpu' else 'SMs'}"
    )
    table.add_row("curves", f"{len(found['curves'])}, {sum(map(len, found['curves'].values()))} points")
    if found["device"] == "virtual":
        table.add_row("times", "mean nothing on the virtual GPU: each measurement ran once, nothing is written")
    else:
        for key, value in found.items():
            if key.endswith("_flops_per_s"):
                table.add_row(f"products, {key.removesuffix('_flops_per_s')}", f"{value / 1e9:,.1f} GFLOPS")
        table.add_row("memory", f"{found['memory_bytes_per_s'] / 1e9:,.1f} GB/s")
        table.add_row("an operator's fixed cost", f"{1e6 * (found['launch_seconds'] or found['host_seconds']):.1f} us")
    _show(table, console)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index and any(columns) else "left", no_wrap=True)
    return table


def _show(table: Table, console: Console) -> None:
    if console.no_color:
        console.file.write(plain(table, width=console.width) + "\n\n")
    else:
        console.print(table)
        console.print()


def _name(row: MeasuredStep) -> str:
    words = [row.target, *(f"{key} {value}" for key, value in (("batch", row.batch), ("seq", row.seq)) if value)]
    return " ".join([*words, *row.settings])


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def _off(predicted: float, measured: float) -> str:
    return f"{predicted / measured - 1:+.1%}"
