"""The table of layers: which columns it has at a width, and its lines.

Columns are dropped from the least telling upwards until the table fits; one in which nothing is known or all is 0 goes
at any width. All columns but the last two are of *one* module; `xN` says how many a folded line stands
for, and the last two columns count all of them, so that they add up.

>>> from dnnmem.cli.render.rich_text import plain
>>> from dnnmem.cli.render.rows import fold_rows
>>> from dnnmem.estimator.profile import Layer
>>> rows = fold_rows([Layer(module=f"h.{i}", type="Linear", param_bytes=1024, peak_bytes=3072) for i in range(2)])
>>> print(plain(layer_table(rows, peak_bytes=6144, width=60), width=60))
layer      type     params  at peak    share
h.0-1  x2  Linear  1.0 KiB  6.0 KiB  100.0 %
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table

from dnnmem.cli.render.rows import Row
from dnnmem.cli.render.stack import percent
from dnnmem.cli.render.text import shorten_left
from dnnmem.estimator.units import format_bytes, format_flops, format_seconds

GAP = 2
"""Blanks between columns."""

_LABEL_WIDTH, _TYPE_WIDTH = 22, 22
"""The path gives way to this many columns before a column of numbers is dropped; a class name never takes more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the table."""

    head: str
    """Its title."""
    cell: Callable[[Row, int], str]
    """Text for a row, given the bytes at the peak; empty if there is nothing to say."""
    rank: int
    """Dropped in falling order when the terminal is narrow; 0 is never dropped."""
    left: bool = False
    """True for words, False for numbers."""


def _bytes(name: str) -> Callable[[Row, int], str]:
    def cell(row: Row, _: int) -> str:
        nbytes: int = getattr(row.one, name)
        return format_bytes(nbytes) if nbytes else ""

    return cell


def _flops(name: str) -> Callable[[Row, int], str]:
    def cell(row: Row, _: int) -> str:
        flops: int = getattr(row.one, name)
        return format_flops(flops) if flops else ""

    return cell


def _seconds(name: str) -> Callable[[Row, int], str]:
    def cell(row: Row, _: int) -> str:
        seconds: float | None = getattr(row.one, name)
        return "" if seconds is None else format_seconds(seconds)

    return cell


def _share(row: Row, peak_bytes: int) -> str:
    return percent(row.peak_bytes / peak_bytes) if row.peak_bytes and peak_bytes else ""


COLUMNS = (
    Column(head="layer", cell=lambda row, _: label(row), rank=0, left=True),
    Column(head="", cell=lambda row, _: f"x{row.count}" if row.count > 1 else "", rank=0),
    Column(head="type", cell=lambda row, _: _type(row), rank=5, left=True),
    Column(head="params", cell=_bytes("param_bytes"), rank=2),
    Column(head="grads", cell=_bytes("grad_bytes"), rank=6),
    Column(head="optimizer", cell=_bytes("optimizer_bytes"), rank=7),
    Column(head="activations", cell=_bytes("activation_bytes"), rank=1),
    Column(head="temp", cell=_bytes("temp_bytes"), rank=4),
    Column(head="fwd FLOPs", cell=_flops("forward_flops"), rank=8),
    Column(head="bwd FLOPs", cell=_flops("backward_flops"), rank=9),
    Column(head="fwd", cell=_seconds("forward_seconds"), rank=10),
    Column(head="bwd", cell=_seconds("backward_seconds"), rank=11),
    Column(head="at peak", cell=lambda row, _: format_bytes(row.peak_bytes) if row.peak_bytes else "", rank=3),
    Column(head="share", cell=_share, rank=0),
)
"""In the order they are shown."""


def layer_table(rows: Sequence[Row], *, peak_bytes: int, width: int) -> Table:
    """The table for `rows`, with the columns that `width` has room for; `peak_bytes` is what shares are of."""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    cells = {column.head: [column.cell(row, peak_bytes) for row in rows] for column in COLUMNS}
    chosen = _choose(cells, width)
    room = width - sum(_width(column, cells) + GAP for column in chosen[1:])
    cells["layer"] = [shorten_left(text, max(room, _LABEL_WIDTH)) for text in cells["layer"]]
    for column in chosen:
        table.add_column(column.head, justify="left" if column.left else "right", no_wrap=True, overflow="ellipsis")
    for i, row in enumerate(rows):
        table.add_row(*(cells[column.head][i] for column in chosen), style="dim" if _is_light(row, peak_bytes) else "")
    return table


def label(row: Row) -> str:
    """The path for people: the model itself has an empty one.

    >>> from dnnmem.estimator.profile import Layer
    >>> layer = Layer(module="", type="Net")
    >>> label(Row(label="", count=1, one=layer, peak_bytes=0, inside=0, own=True))
    '<model>'
    """
    name = row.label or "<model>"
    return f"{name} (own)" if row.own and row.label else name


def _type(row: Row) -> str:
    name = row.one.type
    words = f"{name} ({row.inside} inside)" if row.inside and name else f"{row.inside} inside" if row.inside else name
    return words if len(words) <= _TYPE_WIDTH else name[:_TYPE_WIDTH]


def _is_light(row: Row, peak_bytes: int) -> bool:
    return row.peak_bytes < peak_bytes / 1000


def _choose(cells: dict[str, list[str]], width: int) -> list[Column]:
    chosen = [column for column in COLUMNS if column.rank == 0 or any(cells[column.head])]
    chosen = [column for column in chosen if column.head or any(cells[column.head])]
    for column in sorted(chosen, key=lambda column: -column.rank):
        label_width = min(_width(COLUMNS[0], cells), max(_LABEL_WIDTH, width // 4))
        if label_width + sum(_width(c, cells) + GAP for c in chosen[1:]) <= width or not column.rank:
            break
        chosen.remove(column)
    return chosen


def _width(column: Column, cells: dict[str, list[str]]) -> int:
    return max(cell_len(text) for text in (column.head, *cells[column.head]))
