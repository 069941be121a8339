"""Two plans side by side, for people: what one other choice does to memory and time.

as ranked    what if     difference
step             1.37 s       1.52 s        +11 %
"""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.rich_text import plain
from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.plan_text import settings
from dnnmem.estimator.units import format_bytes, format_seconds


def print_difference(before: Estimate, after: Estimate, console: Console) -> None:
    """Write what `after` has in the place of `before`."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("", "as ranked", "what if", "difference"):
        table.add_column(name, justify="right" if name else "left")
    _row(table, "reserved", before.peak_reserved_bytes, after.peak_reserved_bytes, lambda n: format_bytes(round(n)))
    _row(table, "allocated", before.peak_allocated_bytes, after.peak_allocated_bytes, lambda n: format_bytes(round(n)))
    _row(table, "step", before.step_seconds, after.step_seconds, format_seconds)
    for name in before.breakdown:
        _row(table, name, before.breakdown[name], after.breakdown[name], format_seconds)
    for section in (Text(), Text(f"What if: {_changed(before, after)}", "bold"), table):
        console.print(plain(section, width=console.width) if console.no_color else section)


def _changed(before: Estimate, after: Estimate) -> str:
    old, new = (set(settings(estimate.plan)) for estimate in (before, after))
    now, was = (" ".join(sorted(some)) for some in (new - old, old - new))
    return f"{now or 'the default'} instead of {was or 'the default'}" if now or was else "nothing is changed"


def _row(table: Table, name: str, old: float | None, new: float | None, form: Callable[[float], str]) -> None:
    if old is None or new is None or not (old or new):
        return
    change = f"{100 * (new / old - 1):+.1f} %" if old else "new"
    table.add_row(name, form(old), form(new), change)
