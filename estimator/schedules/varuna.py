"""Varuna (Athlur et al. 2022, arXiv 2111.04007): stages keep inputs only, and run forwards again just in time.

`R` is that run, so that its backward follows at once when the gradient comes. A rank takes a backward before it takes a
forward, and waits for nothing else; the last stage's backward follows its forward, with nothing to run again.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(3, 3)))
0  F0 F1 F2 R0 .  .  B0 R1 B1 R2 B2
1  .  F0 F1 F2 R0 B0 R1 B1 R2 B2 .
2  .  .  F0 B0 F1 B1 F2 B2 .  .  .
"""

from __future__ import annotations

from typing import NamedTuple

from dnnmem.estimator.schedules.grid import Grid, Step, looped
from dnnmem.estimator.schedules.limits import one_chunk

_TICKS = {"F": 1, "R": 1, "B": 2}
"""How long steps take as the order is made: a backward twice a forward."""


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks. Raises `UsageError` for more than one chunk a rank."""
    one_chunk("varuna", chunks)
    p, m = stages, microbatches
    rows: list[list[Step]] = [[] for _ in range(p)]
    ends: dict[tuple[str, int, int], int] = {}
    free = [0] * p
    tick = 0
    while sum(step.phase == "B" for row in rows for step in row) < m * p:
        for r in reversed(range(p)):  # a rank knows when the one after it will be done
            step = _next(rows[r], _Place(r, p, m, tick), ends) if free[r] <= tick else None
            if step is not None:
                rows[r].append(step)
                free[r] = ends[step.phase, step.microbatch, r] = tick + _TICKS[step.phase]
        tick += 1
    return Grid(ranks=tuple(map(tuple, rows)), stages=looped(p))


class _Place(NamedTuple):
    rank: int
    ranks: int
    microbatches: int
    tick: int


def _next(row: list[Step], place: _Place, ends: dict[tuple[str, int, int], int]) -> Step | None:
    """The step that a free rank takes; None = it waits."""
    r, p, m, tick = place
    fore, back = (sum(step.phase == phase for step in row) for phase in "FB")
    last = r == p - 1
    comes = ends.get(("B", back, r + 1)) if not last else tick if back < fore else None
    again = last or (bool(row) and row[-1].phase == "R")
    if again and (comes is not None or not last):
        return Step("B", back, 0) if comes is not None and comes <= tick else None
    if comes is not None and comes <= tick + _TICKS["R"]:
        return Step("R", back, 0)
    if fore < m and (not r or ends.get(("F", fore, r - 1), tick + 1) <= tick):
        return Step("F", fore, 0)
    return None
