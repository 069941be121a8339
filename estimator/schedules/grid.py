"""What every schedule makes: the order of work on each rank of a pipeline, when that work runs, and a drawing of it.

A rank holds one or more chunks of the model; chunk c of rank r is virtual stage c * ranks + r, and micro-batches go
through the virtual stages in order, forward, then backward.

>>> two = ((Step("F", 0, 0), Step("B", 0, 0)), (Step("F", 0, 0), Step("B", 0, 0)))
>>> print(draw(two))
0  F0 .  .  B0
1  .  F0 B0 .
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dnnmem.estimator.errors import InternalError


class Step(NamedTuple):
    """One micro-batch through one chunk."""

    phase: str
    """`F` forward or `B` backward."""
    microbatch: int
    """From 0."""
    chunk: int
    """Of those that the rank holds, from 0."""


Grid = tuple[tuple[Step, ...], ...]
"""The steps of each rank, in the order it takes them."""

Costs = Sequence[Sequence[float]]
"""Seconds by rank and chunk."""

Ended = dict[str, list[list[float | None]]]


def starts(grid: Grid, forward: Costs, backward: Costs, send_seconds: float = 0.0) -> list[list[float]]:
    """Second at which each step of each rank begins; what one rank hands to another arrives `send_seconds` later.

    A step waits for its rank and for what it needs: a forward for the one of the virtual stage before, a backward for
    that of the stage after (the last stage's own forward). Raises `InternalError` if the orders wait for each other.
    """
    # p ranks; virtual stage s = chunk * p + rank; ended[phase][s][micro-batch] = second, None where not known yet
    p, steps = len(grid), [step for rank in grid for step in rank]
    stages = p * (1 + max((step.chunk for step in steps), default=0))
    microbatches = 1 + max((step.microbatch for step in steps), default=0)
    ended: Ended = {phase: [[None] * microbatches for _ in range(stages)] for phase in "FB"}
    costs = {"F": forward, "B": backward}
    began: list[list[float]] = [[] for _ in grid]
    clock = [0.0] * p
    left = len(steps)
    sweep = (*range(p), *reversed(range(p)))  # forwards come from below, backwards from above
    while left:
        before = left
        for r in sweep:
            while len(began[r]) < len(grid[r]):
                step = grid[r][len(began[r])]
                ready = _ready(step, step.chunk * p + r, ended, send_seconds if p > 1 else 0.0)
                if ready is None:
                    break
                begin = max(clock[r], ready)
                clock[r] = begin + costs[step.phase][r][step.chunk]
                ended[step.phase][step.chunk * p + r][step.microbatch] = clock[r]
                began[r].append(begin)
                left -= 1
        if left == before:
            raise InternalError(
                f"{p} ranks stop after {[len(row) for row in began]} steps: their orders wait for each other"
            )
    return began


def _ready(step: Step, stage: int, ended: Ended, send: float) -> float | None:
    """When what `step` needs has come to virtual stage `stage`; None = not known yet."""
    phase, microbatch, _ = step
    if phase == "F":
        if not stage:
            return 0.0
        done = ended["F"][stage - 1][microbatch]
    elif stage == len(ended["F"]) - 1:
        return ended["F"][stage][microbatch]
    else:
        done = ended["B"][stage + 1][microbatch]
    return None if done is None else done + send


def draw(grid: Grid) -> str:
    """The grid with every step one tick long: a line a rank, a column a tick; `'` marks chunk 1, `''` chunk 2."""
    ones = [[1.0] * (1 + max((step.chunk for step in rank), default=0)) for rank in grid]
    lines = []
    labels = [[f"{s.phase}{s.microbatch}{chr(39) * s.chunk}" for s in rank] for rank in grid]
    ticks = starts(grid, ones, ones)
    width = max((len(label) for rank in labels for label in rank), default=1)
    last = int(max((row[-1] for row in ticks if row), default=-1))
    for r, (row, label) in enumerate(zip(ticks, labels, strict=True)):
        cells = dict(zip(map(int, row), label, strict=True))
        lines.append(f"{r}  " + " ".join(cells.get(t, ".").ljust(width) for t in range(last + 1)).rstrip())
    return "\n".join(lines)
