"""Memory over the step, drawn with characters: kinds stacked, time to the right, the peak marked, phases below.

    1.00 GiB |            v peak
             |         aaaaaaa            each column shows the largest moment of the events it stands for,
             |     aaaaaaGGGGGGGGG        so the peak is never averaged away
           0 |PPPPPPPPPPPPPPPPPPPPPP
              |forward    |backward |step

Columns are allocator events, not seconds: where much is allocated and freed, the picture is wide.

>>> columns(9, 3)
[(0, 3), (3, 6), (6, 9)]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.text import Text

from dnnmem.cli.render.palette import look, texture
from dnnmem.estimator.profile import PARTS
from dnnmem.estimator.timeline import Timeline
from dnnmem.estimator.units import format_bytes

HEIGHT = 12
"""Lines of the picture."""

_LABEL = 10
"""Columns of the axis labels."""

_SHORT = {"forward": "fwd", "backward": "bwd"}
"""Names of phases where there is little room."""


def columns(events: int, width: int) -> list[tuple[int, int]]:
    """Intervals of events, one for each of `width` columns of the picture; few events are stretched.

    >>> columns(2, 4)
    [(0, 1), (0, 1), (1, 2), (1, 2)]
    """
    starts = [i * events // width for i in range(width)]
    return [(start, max(start + 1, (i + 1) * events // width)) for i, start in enumerate(starts)]


def sample(timeline: Timeline, intervals: Sequence[tuple[int, int]]) -> list[int]:
    """The event of each interval that allocates most: kinds taken there add up, and the peak is among them."""
    return [first + int(timeline.allocated[first:last].argmax()) for first, last in intervals]


def chart(
    timeline: Timeline,
    phases: Sequence[tuple[str, int]],
    *,
    width: int,
    color: bool,
    unicode: bool,
    height: int = HEIGHT,
) -> list[Text]:
    """The lines of the picture, legend last; none for a step that allocates nothing."""
    top = int(timeline.allocated[timeline.peak])
    if not top:
        return []
    intervals = columns(len(timeline.allocated), width - _LABEL - 2)
    events = sample(timeline, intervals)
    kinds = _kinds(timeline)
    cells = np.stack([_rounded(timeline, kinds, event, top, height) for event in events])
    at = next(i for i, (first, last) in enumerate(intervals) if first <= timeline.peak < last)
    arrow = "▼" if unicode else "v"
    lines = [Text(" " * (_LABEL + 2 + at) + arrow + " peak")] if at + 6 <= len(events) else []
    lines = lines or [Text(" " * (_LABEL + 2 + at - 5) + "peak " + arrow)]
    for row in range(height - 1, -1, -1):
        line = Text(f"{_axis_label(row, height, top):>{_LABEL}} {'│' if unicode else '|'}")
        for column in cells:
            kind = int(np.searchsorted(column, row, side="right"))
            if kind < len(kinds):
                line.append(texture(kinds[kind], color=color, unicode=unicode), look(kinds[kind]).style)
            else:
                line.append(" ")
        line.rstrip()
        lines.append(line)
    lines += _phase_line(phases, intervals)
    return [*lines, *_legend(kinds, width=width, color=color, unicode=unicode)]


def _kinds(timeline: Timeline) -> list[str]:
    """Kinds that ever hold anything, from bottom to top."""
    lines = {kind.value: line for kind, line in timeline.kinds.items()}
    return [part for part in PARTS if part in lines and lines[part].any()]


def _rounded(timeline: Timeline, kinds: Sequence[str], event: int, top: int, height: int) -> npt.NDArray[np.int64]:
    """Where each kind ends, in lines from the bottom; rounding the running sums keeps the stack's height right."""
    lines = {kind.value: line for kind, line in timeline.kinds.items()}
    ends = np.cumsum([int(lines[kind][event]) for kind in kinds])
    rounded: npt.NDArray[np.int64] = np.rint(ends * height / top).astype(np.int64)
    return rounded


def _axis_label(row: int, height: int, top: int) -> str:
    if row == height - 1:
        return format_bytes(top)
    if row == height // 2 - 1:
        return format_bytes(top // 2)
    return "0" if row == 0 else ""


def _phase_line(phases: Sequence[tuple[str, int]], intervals: Sequence[tuple[int, int]]) -> list[Text]:
    if not phases:
        return []
    starts = [next((i for i, (_, last) in enumerate(intervals) if start < last), len(intervals)) for _, start in phases]
    line = ""
    for (name, _), at, end in zip(phases, starts, [*starts[1:], len(intervals)], strict=True):
        words = name if end - at > len(name) else _SHORT.get(name, name)
        line = f"{line[:at]:<{at}}" + f"|{words}"[: max(0, end - at)]
    return [Text(" " * (_LABEL + 2) + line)]


def _legend(kinds: Sequence[str], *, width: int, color: bool, unicode: bool) -> list[Text]:
    lines = [Text(" " * (_LABEL + 2))]
    for kind in reversed(kinds):
        if len(lines[-1]) + len(look(kind).label) + 2 > width:
            lines.append(Text(" " * (_LABEL + 2)))
        lines[-1].append(texture(kind, color=color, unicode=unicode), look(kind).style)
        lines[-1].append(f" {look(kind).label}  ")
    for line in lines:
        line.rstrip()
    return lines
