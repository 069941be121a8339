"""What is alive at the peak: the largest lines of `Profile.alive`, and one line that carries them to the whole.

>>> from dnnmem.cli.render.rich_text import plain
>>> item = Alive(nbytes=64, count=2, kind="param", module="h.0-1", name="weight", shape=(2, 4), dtype="float32")
>>> print(plain(alive_table([item], total_bytes=80, width=60), width=60))
64 B  x2  parameters  h.0-1.weight     float32[2,4]
16 B                  everything else
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.palette import look
from dnnmem.cli.render.text import short_op, shorten_left, shorten_right
from dnnmem.estimator.profile import Alive
from dnnmem.estimator.units import format_bytes

TOP = 10
"""Lines of the table."""

GAP = 2
"""Blanks between columns."""

_OWNED = frozenset({"param", "grad", "optimizer", "buffer"})
"""Kinds that have a name of their own; the others are named after the op that made them."""


def alive_table(alive: Sequence[Alive], *, total_bytes: int, width: int) -> Table:
    """The first `TOP` of `alive`, which come largest first, and what is then left of `total_bytes`."""
    rows = [_cells(item, width) for item in alive[:TOP]]
    rest = total_bytes - sum(item.nbytes for item in alive[:TOP])
    if rest > 0:
        rows.append((format_bytes(rest), "", Text(), "everything else", ""))
    widths = [max((len(cell) for cell in column), default=0) for column in zip(*rows, strict=True)]
    room = width - sum(widths[:3]) - 3 * GAP
    owner = min(widths[3], max(room // 2, room - widths[4] - GAP, 8))
    table = Table(box=None, show_header=False, padding=(0, GAP, 0, 0), pad_edge=False)
    for justify in ("right", "left", "left", "left", "left"):
        table.add_column(justify=justify, no_wrap=True)
    for nbytes, times, kind, thing, made in rows:
        table.add_row(nbytes, times, kind, shorten_left(thing, owner), shorten_right(made, max(room - owner - GAP, 0)))
    return table


def thing(item: Alive) -> str:
    """What is alive: a parameter's path, or the module that made it, or the op where no module did."""
    name, owned = short_op(item.name), item.kind in _OWNED
    return f"{item.module}.{name}" if owned and name and item.module else item.module or name


def made(item: Alive) -> str:
    """Its element type and shape, and the op that made it."""
    name = short_op(item.name)
    text = f"{item.dtype}[{','.join(map(str, item.shape))}]" if item.dtype else ""
    return f"{text} by {name}".strip() if name and item.kind not in _OWNED and item.module else text


def _cells(item: Alive, width: int) -> tuple[str, str, Text, str, str]:
    kind, text = look(item.kind), made(item)
    if item.source and item.kind not in _OWNED and width >= 120:
        text = f"{text}, {shorten_left(item.source, 40)}"
    times = f"x{item.count}" if item.count > 1 else ""
    return format_bytes(item.nbytes), times, Text(kind.label, kind.style), thing(item), text
