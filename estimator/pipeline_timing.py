"""How long a pipeline takes, where it waits, and how much it holds: a schedule's grid with seconds.

>>> from dnnmem.estimator.schedules import SCHEDULES
>>> timing = pipeline_seconds(SCHEDULES["1f1b"](4, 8, 1), [[1.0]] * 4, [[2.0]] * 4, 0.0)
>>> timing.seconds, timing.busy[0], timing.in_flight          # (m + p - 1) (f + b), m (f + b), p - r
(33.0, 24.0, (4, 3, 2, 1))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dnnmem.estimator.schedules.grid import Costs, Grid, Row, starts


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineTiming:
    """What a schedule does with given seconds a step."""

    seconds: float
    """From the first forward to the last backward; without a flush, what a step adds to those before it."""
    busy: tuple[float, ...]
    """Seconds that each rank works."""
    bubble: tuple[float, ...]
    """Seconds that each rank waits: `seconds` less `busy`."""
    in_flight: tuple[int, ...]
    """Most forwards of chunks whose backward has not ended, on each rank: what it holds of activations at once."""


def pipeline_seconds(
    grid: Grid, forward: Costs, backward: Costs, send_seconds: float = 0.0, weights: Costs | None = None
) -> PipelineTiming:
    """Time `grid`: `forward` and `backward` by rank and chunk, `send_seconds` from one rank to another.

    `weights` is that part of the backward which makes the gradients of weights, where it is a step of its own; None =
    half of it. Where a forward is run again in a step of its own, `backward` has it in it.
    """
    costs = _by_phase(grid, forward, backward, weights)
    busy = tuple(sum(costs[step.phase][r][step.chunk] for step in rank) for r, rank in enumerate(grid.ranks))
    if grid.flushes:
        began = starts(grid, costs, send_seconds)
        ends = [
            row[-1] + costs[rank[-1].phase][r][rank[-1].chunk]
            for r, (row, rank) in enumerate(zip(began, grid.ranks, strict=True))
            if row
        ]
    else:  # once the pipeline is full, the busiest rank never waits
        ends = list(busy)
    seconds = max(ends, default=0.0)
    return PipelineTiming(
        seconds=seconds,
        busy=busy,
        bubble=tuple(seconds - work for work in busy),
        in_flight=tuple(map(in_flight, grid.ranks)),
    )


def _by_phase(grid: Grid, forward: Costs, backward: Costs, weights: Costs | None) -> Mapping[str, Costs]:
    """Seconds of each kind of step."""
    if weights is None:
        weights = [[seconds / 2 for seconds in row] for row in backward]
    inputs = _less(backward, weights)
    if any(step.phase == "R" for rank in grid.ranks for step in rank):
        backward = _less(backward, forward)
    return {"F": forward, "B": backward, "I": inputs, "W": weights, "R": forward}


def _less(more: Costs, less: Costs) -> Costs:
    return [[max(a - b, 0.0) for a, b in zip(*rows, strict=True)] for rows in zip(more, less, strict=True)]


def in_flight(rank: Row) -> int:
    """Most forwards of a rank without the end of their backward.

    >>> from dnnmem.estimator.schedules.grid import Step
    >>> in_flight((Step("F", 0, 0), Step("F", 1, 0), Step("B", 0, 0), Step("B", 1, 0)))
    2
    """
    held = most = 0
    for step in rank:
        held += {"F": 1, "B": -1, "W": -1}.get(step.phase, 0)
        most = max(most, held)
    return most
