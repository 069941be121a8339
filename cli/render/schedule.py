"""A planned step drawn as text: when each block runs, forward, again and backward, and what it holds between.

                    |forward       |backward
before              F                              B
h.0-3     again      FFFFF░░░░░░░░░░░░░░░░RRRRBBBBB        R  computed again
h.4-7     kept            FFFFF██████████BBBB              █  all that it saves is on the GPU, ░ some of it
other                          FFBBBB
allocated 3.10 GiB  ▁▂▂▂▃▄▆▇██▇▅▄▃▃▃▃▄▅▅▄▃▂▂▁▁

Columns are seconds. All is read off the rewritten step and the times of its ops, not off the plan.
"""

from __future__ import annotations

import numpy as np

from dnnmem.cli.render.schedule_grid import KINDS, Grid, Step, grid
from dnnmem.cli.render.text import shorten_left
from dnnmem.estimator.block_fates import Group
from dnnmem.estimator.trace import Phase
from dnnmem.estimator.units import format_bytes

_LETTERS = "FRBU><"
"""Of `KINDS`."""
_COMPUTE = 4
"""How many of them are the GPU's own work; the others run beside."""
_SHADES, _ASCII_SHADES = " ░▒█", " .=#"
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "12345678"
_AWAY = "~"
_SEEN = 0.3
"""Share of a column from which on work is seen in it."""
_SENT = 0.02
"""Share of what a group saves from which on it is said to be sent to the host."""
_LABEL, _FATE = 18, 10
"""Columns of a row's name at most, and of the words beside it."""
_PHASES = {Phase.FORWARD: "forward", Phase.BACKWARD: "backward", Phase.STEP: "update"}


def picture(step: Step, *, width: int, unicode: bool) -> list[str]:
    """The lines of the picture in `width` columns, legend last."""
    label = min(max(9, *(len(group.path) for group in step.groups)), _LABEL) if step.groups else 9
    found = grid(step, max(width - label - _FATE - 2, 20))
    words = ["", *(fate_words(group) for group in step.groups), "", ""]
    lines = [_line("", "", _phases(found), label)]
    used = set[str]()
    for row, name in enumerate(found.names):
        cells = _cells(found, row, unicode=unicode)
        if cells.strip():
            used.update(cells)
            lines.append(_line(shorten_left(name, label), words[row], cells, label))
    lines.append(_line("allocated", format_bytes(int(found.memory.max())), _bars(found, unicode=unicode), label))
    return [*lines, *_legend(used, width, unicode=unicode)]


def fate_words(group: Group) -> str:
    """What becomes of a group, in two words or less."""
    again, kept, away = group.again, group.share("kept_bytes"), group.share("host_bytes")
    if again >= 0.05:
        times = f" x{again:.1f}".removesuffix(".0") if again >= 1.5 else ""
        by = f" by {group.run}" if len(group.fates) > group.run > 1 else ""
        away_too = "+host" if away >= _SENT else ""
        return f"{'part again' if kept >= 0.3 else 'again'}{away_too or by + times}"[:_FATE]
    return "to host" if away >= _SENT else "kept"


def _line(name: str, words: str, cells: str, label: int) -> str:
    return f"{name:<{label}} {words:<{_FATE}} {cells}".rstrip()


def _phases(found: Grid) -> str:
    columns = len(found.memory)
    starts = [(int(begin / found.seconds * columns), _PHASES[phase]) for phase, begin in found.starts.items()]
    line = ""
    for (at, name), (end, _) in zip(starts, [*starts[1:], (columns, "")], strict=True):
        line = f"{line[:at]:<{at}}" + f"|{name}"[: max(end - at, 0)]
    return line


def _cells(found: Grid, row: int, *, unicode: bool) -> str:
    """What a row does in each column, or holds."""
    work, column_seconds = found.work[row], found.seconds / len(found.memory)
    shades = _SHADES if unicode else _ASCII_SHADES
    cells = [_state(found, row, column, shades) for column in range(len(found.memory))]
    for kinds in (range(_COMPUTE, len(KINDS)), range(_COMPUTE)):  # the GPU's own work is drawn over copies
        for column in np.flatnonzero(work[kinds.start : kinds.stop].sum(axis=0) >= _SEEN * column_seconds):
            cells[column] = _LETTERS[kinds.start + int(work[kinds.start : kinds.stop, column].argmax())]
    for kind in range(_COMPUTE):  # however short
        if work[kind].any() and _LETTERS[kind] not in cells:
            cells[int(work[kind].argmax())] = _LETTERS[kind]
    return "".join(cells)


def _state(found: Grid, row: int, column: int, shades: str) -> str:
    full = found.saved_bytes[row]
    if not full:
        return " "
    held, away = found.held[row, column] / full, found.away[row, column] / full
    if away > 0.05 and away > held:
        return _AWAY
    return shades[0 if held < 0.01 else 1 if held < 0.35 else 2 if held < 0.8 else 3]


def _bars(found: Grid, *, unicode: bool) -> str:
    """The memory's height in each column, from nothing to the most."""
    bars = _BARS if unicode else _ASCII_BARS
    top = found.memory.max() or 1.0
    return "".join(bars[min(int(nbytes / top * len(bars)), len(bars) - 1)] for nbytes in found.memory)


def _legend(used: set[str], width: int, *, unicode: bool) -> list[str]:
    """What the signs mean that were used."""
    shades = _SHADES if unicode else _ASCII_SHADES
    meaning = {
        "F": "forward", "R": "again", "B": "backward", "U": "update", ">": "to host", "<": "back",
        shades[3]: "holds all it saves", shades[2]: "half", shades[1]: "little", _AWAY: "on the host",
    }  # fmt: skip
    lines = [""]
    for sign, words in meaning.items():
        if sign in used:
            told = f"{sign} {words}"
            if lines[-1] and len(lines[-1]) + 2 + len(told) > width:
                lines.append("")
            lines[-1] += ("  " if lines[-1] else "") + told
    return [line for line in lines if line]
