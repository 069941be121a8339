"""When each lane of a GPU works, as a picture: runs of ops of one phase and module are one piece.

    compute        [forward  ][backward                 ][step]
    communication        [ ] [ ]  [ ] [ ] [ ]                     overlaps, or makes compute wait

>>> from dnnmem.estimator.simulate import simulate
>>> ops = [Op(name="aten.mm", module=("fc",)), Op(name="aten.mm", module=("fc",))]
>>> [(row.name, [(piece.x, piece.width) for piece in row.pieces]) for row in lanes(ops, simulate(ops, [1, 3], [0, 0]))]
[('compute', [(0.0, 100.0)])]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnmem.cli.render.html.strip import Piece
from dnnmem.cli.render.text import place
from dnnmem.estimator.simulate import Timing
from dnnmem.estimator.trace import Lane, Op, Phase
from dnnmem.estimator.units import format_seconds

PHASES = {Phase.FORWARD: "param", Phase.BACKWARD: "activation", Phase.STEP: "optimizer"}
"""Colours."""
_NAMES = {Lane.COMPUTE: "compute", Lane.COMM: "communication", Lane.TO_HOST: "to host", Lane.TO_DEVICE: "to device"}
_NAMED = 2
"""Names of a module's path that tell pieces apart: `blocks.3`."""
_GAP = 0.002
"""Ops closer than this share of the step are one piece."""
_MOST = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRow:
    """One lane."""

    name: str
    """For people."""
    busy: str
    """How long it works, in words."""
    pieces: tuple[Piece, ...]
    """Where it works."""


def lanes(ops: Sequence[Op], timing: Timing) -> list[LaneRow]:
    """The lanes that do anything, compute first; pieces are of whole phases where there would be too many."""
    for names in (_NAMED, 1, 0):
        rows = [_row(lane, ops, timing, names) for lane in Lane if timing.busy.get(lane)]
        if sum(len(row.pieces) for row in rows) <= _MOST:
            break
    return rows


@dataclass(slots=True, eq=False)
class _Run:
    phase: Phase
    module: tuple[str, ...]
    start: float
    end: float


def _row(lane: Lane, ops: Sequence[Op], timing: Timing, names: int) -> LaneRow:
    whole = timing.seconds or 1.0
    runs: list[_Run] = []
    for op, start, end in zip(ops, timing.start.tolist(), timing.end.tolist(), strict=True):
        if op.lane is not lane or end <= start:
            continue
        run, module = runs[-1] if runs else None, op.module[:names]
        if run and (run.phase, run.module) == (op.phase, module) and start - run.end < _GAP * whole:
            run.end = max(end, run.end)
        else:
            runs.append(_Run(op.phase, module, start, end))
    pieces = tuple(_piece(run, whole) for run in runs)
    return LaneRow(name=_NAMES[lane], busy=format_seconds(timing.busy[lane]), pieces=pieces)


def _piece(run: _Run, whole: float) -> Piece:
    seconds = run.end - run.start
    title = f"{run.phase.value}, {place('.'.join(run.module))}: {format_seconds(seconds)}"
    x, width = round(100 * run.start / whole, 3), round(100 * seconds / whole, 3)
    return Piece(kind=PHASES[run.phase], label="", title=title, x=x, width=max(width, 0.02))
