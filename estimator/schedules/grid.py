"""What every schedule makes: the order of work on each rank of a pipeline, when that work runs, and a drawing of it.

A rank holds one or more chunks of the model, each of which is one of its stages. Micro-batches go through the stages in
order, forward, then backward.

    looped   rank r: stages r, p + r, ...     vee   r, 2p - 1 - r     two_ways   r, p - 1 - r: two replicas of the model

>>> two = Grid(ranks=((Step("F", 0, 0), Step("B", 0, 0)), (Step("F", 0, 0), Step("B", 0, 0))), stages=looped(2))
>>> print(draw(two))
0  F0 .  .  B0
1  .  F0 B0 .
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dnnmem.estimator.errors import InternalError


class Step(NamedTuple):
    """One micro-batch through one chunk."""

    phase: str
    """`F` forward, `B` backward; `I` and `W` backward's parts, the gradients of inputs and those of weights; `R` the
    forward again, for its activations."""
    microbatch: int
    """From 0."""
    chunk: int
    """Of those that the rank holds, from 0."""


Row = tuple[Step, ...]
"""The steps of a rank, in the order it takes them."""
Stages = tuple[tuple[int, ...], ...]
"""The stage that each chunk of each rank is, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Who does what, in what order, and what of the weights that takes."""

    ranks: tuple[Row, ...]
    """By rank."""
    stages: Stages
    """Where the stages lie."""
    versions: tuple[int, ...] = ()
    """Versions of its weights that each rank holds; empty = one each."""
    averages: int = 0
    """Running averages of each weight's changes that are held besides."""
    flushes: bool = True
    """Steps end before the next begins; False = micro-batches follow each other without end, on weights that lag."""
    paired: bool = False
    """A forward and the backward that follows it on another chunk run at once, and hand on what they made then."""

    @property
    def replicas(self) -> int:
        """How often each stage is there."""
        held = [stage for row in self.stages for stage in row]
        return len(held) // len(set(held))

    def extra_copies(self, rank: int) -> int:
        """Copies of its weights that a rank holds besides the one that is updated."""
        return (self.versions[rank] if self.versions else 1) - 1 + self.averages

    def peers(self, rank: int) -> int:
        """How many other ranks have the stages before a rank's and after them."""
        wanted = {near for stage in self.stages[rank] for near in (stage - 1, stage + 1)} - {*self.stages[rank]}
        return sum(1 for r, row in enumerate(self.stages) if r != rank and wanted & {*row})


Costs = Sequence[Sequence[float]]
"""Seconds by rank and chunk."""
_Ended = dict[tuple[str, int, int], tuple[float, int]]
"""By pass, micro-batch and stage: when, and on which rank."""
_PASS = {"F": "F", "B": "B", "I": "B", "W": "W", "R": "R"}
"""What a step's end is the end of."""


def looped(p: int, chunks: int = 1) -> Stages:
    """Stages dealt out round by round."""
    return tuple(tuple(c * p + r for c in range(chunks)) for r in range(p))


def vee(p: int) -> Stages:
    """Down the ranks and up again: the first rank has the first stage and the last."""
    return tuple((r, 2 * p - 1 - r) for r in range(p))


def two_ways(p: int) -> Stages:
    """Two replicas in opposite directions: chunk 0 goes down the ranks, chunk 1 up."""
    return tuple((r, p - 1 - r) for r in range(p))


def starts(grid: Grid, costs: Mapping[str, Costs], send_seconds: float = 0.0) -> list[list[float]]:
    """Second at which each step of each rank begins; what one rank hands to another arrives `send_seconds` later.

    A step waits for its rank and for what it needs: a forward for the one of the stage before, a backward for that of
    the stage after. `costs` are by phase. Raises `InternalError` if the orders wait for each other.
    """
    ended: _Ended = {}
    began: list[list[float]] = [[] for _ in grid.ranks]
    clock = [0.0] * len(began)
    left = sum(map(len, grid.ranks))
    last = max(stage for row in grid.stages for stage in row)
    sweep = (*range(len(began)), *reversed(range(len(began))))  # forwards come from below, backwards from above
    while left:
        before = left
        for r in sweep:
            while turn := _turn(grid, r, len(began[r])):
                needs = [ended.get(key) for step in turn if (key := _need(step, grid.stages[r][step.chunk], last))]
                if None in needs:
                    break
                clock[r] = max([clock[r], *(at + (send_seconds if by != r else 0.0) for at, by in filter(None, needs))])
                for step in turn:
                    began[r].append(clock[r])
                    clock[r] += costs[step.phase][r][step.chunk]
                for step in turn:
                    ended[_PASS[step.phase], step.microbatch, grid.stages[r][step.chunk]] = clock[r], r
                left -= len(turn)
        if left == before:
            raise InternalError(
                f"{len(began)} ranks stop after {[len(row) for row in began]} steps: their orders wait for each other"
            )
    return began


def _turn(grid: Grid, rank: int, n: int) -> Row:
    """The rank's `n`-th step, and the one that runs at once with it; none at the end."""
    row = grid.ranks[rank]
    two = row[n : n + 2]
    if grid.paired and [step.phase for step in two] == ["F", "B"] and two[0].chunk != two[1].chunk:
        return two
    return row[n : n + 1]


def _need(step: Step, stage: int, last: int) -> tuple[str, int, int] | None:
    """Pass, micro-batch and stage that a step waits for; None = its rank's own work before it, or nothing."""
    if step.phase == "F":
        return ("F", step.microbatch, stage - 1) if stage else None
    if step.phase not in "BI":
        return None
    return ("B", step.microbatch, stage + 1) if stage < last else ("F", step.microbatch, stage)


def ticks(grid: Grid) -> dict[str, Costs]:
    """Every step takes as long as every other."""
    ones = [[1.0] * len(row) for row in grid.stages]
    return dict.fromkeys("FBIWR", ones)


def draw(grid: Grid) -> str:
    """The grid with every step one tick long: a line a rank, a column a tick; `'` marks chunk 1, `''` chunk 2."""
    labels = [[f"{s.phase}{s.microbatch}{chr(39) * s.chunk}" for s in rank] for rank in grid.ranks]
    began = starts(grid, ticks(grid))
    width = max((len(label) for rank in labels for label in rank), default=1)
    end = int(max((row[-1] for row in began if row), default=-1))
    lines = []
    for r, (row, label) in enumerate(zip(began, labels, strict=True)):
        cells = dict(zip(map(int, row), label, strict=True))
        lines.append(f"{r}  " + " ".join(cells.get(t, ".").ljust(width) for t in range(end + 1)).rstrip())
    return "\n".join(lines)
