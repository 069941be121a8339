"""What stands in a table: the words for people, the exact value that is sorted by and told on request, its alignment.

>>> size(2048)[:3], size(None)[:3]
(('2.0 KiB', 2048, '2,048 bytes'), ('-', None, 'not known'))
>>> seconds(0.0012).title, share(0.5).text, swatch("param"), swatch("'><b>")
('0.0012 seconds', '50.0 %', 'param', 'unknown')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dnnmem.cli.render.difference import signed
from dnnmem.cli.render.palette import LOOKS
from dnnmem.cli.render.stack import percent
from dnnmem.estimator.units import format_bytes, format_flops, format_number, format_seconds


class Cell(NamedTuple):
    """A cell."""

    text: str
    """For people."""
    key: float | str | None = None
    """What it sorts by; None = not known, which sorts last."""
    title: str = ""
    """The exact value in words."""
    kind: str = ""
    """A name of `PARTS` whose colour stands before the text."""
    bar: float | None = None
    """0 to 1: length of the bar behind the number."""


class Column(NamedTuple):
    """A column."""

    head: str
    """Its title."""
    number: bool = True
    """Numbers stand right, words left."""
    title: str = ""
    """What it means, in a sentence."""
    low: bool = False
    """Less is better: the first click sorts the least to the top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line."""

    cells: Sequence[Cell]
    """One a column."""
    tags: str = ""
    """Words that a check box above the table can ask for."""
    hidden: bool = False
    """True for lines that are shown only when asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that can be sorted and filtered."""

    name: str
    """Its id."""
    caption: str
    """What it lists, for those who cannot see it."""
    columns: Sequence[Column]
    """The first one names the line."""
    rows: Sequence[Row]
    """In the order that is shown first."""
    total: Sequence[Cell] = ()
    """The last line, which stays last."""
    unfold: str = ""
    """Label of the check box that swaps hidden lines and shown ones; empty = no such lines."""

    @property
    def is_long(self) -> bool:
        """Long enough for a filter."""
        return len(self.rows) > 12


def size(nbytes: int | None) -> Cell:
    """Bytes."""
    if nbytes is None:
        return Cell("-", None, "not known")
    return Cell(format_bytes(nbytes), nbytes, f"{nbytes:,} bytes")


def grown(nbytes: int | None) -> Cell:
    """A change of bytes, with its sign."""
    return Cell(signed(nbytes), nbytes, "not known" if nbytes is None else f"{nbytes:+,} bytes")


def seconds(value: float | None) -> Cell:
    """Seconds."""
    if value is None:
        return Cell("-", None, "not measured")
    return Cell(format_seconds(value), value, f"{value:.9g} seconds")


def flops(value: int | None) -> Cell:
    """Floating-point operations."""
    if value is None:
        return Cell("-", None, "not known")
    return Cell(format_flops(value), value, f"{value:,} floating-point operations")


def share(value: float | None) -> Cell:
    """A share of a whole, 0 to 1, with a bar."""
    if value is None:
        return Cell("-", None, "not known")
    return Cell(percent(value), value, bar=min(max(value, 0.0), 1.0))


def number(value: float | None, form: str = "") -> Cell:
    """A plain number, in three digits or whole unless `form` says how."""
    if value is None:
        return Cell("-", None, "not known")
    return Cell(format(value, form) if form else format_number(value), value, f"{value:,.9g}")


def word(text: str, title: str = "", kind: str = "") -> Cell:
    """A word."""
    return Cell(text, text.lower(), title, kind)


def times(count: int) -> Cell:
    """How many modules a line stands for: nothing to see for one."""
    return Cell(f"x{count}", count, f"{count} equal modules") if count > 1 else Cell("", count)


def blank(cell: Cell) -> Cell:
    """Nothing to see where a known value is 0: the eye finds the others."""
    return cell._replace(text="", title="0") if cell.key == 0 else cell


def swatch(kind: str) -> str:
    """The name of a kind's colour in the style; what this version does not know has one too."""
    return kind if kind in LOOKS else "unknown"


def without_empty(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[list[Column], list[Row]]:
    """The table without columns in which no line has anything."""
    used = [i for i in range(len(columns)) if any(row.cells[i].text for row in rows)]
    return [columns[i] for i in used], [replace(row, cells=[row.cells[i] for i in used]) for row in rows]


def outcome(name: str) -> str:
    """How a run ended, for people.

    >>> outcome("out_of_memory")
    'out of memory'
    """
    return name.replace("_", " ")
