"""How long a pipeline takes, where it waits, and how much it holds: a schedule's grid with seconds.

>>> from dnnmem.estimator.schedules import SCHEDULES
>>> timing = pipeline_seconds(SCHEDULES["1f1b"](4, 8, 1), [[1.0]] * 4, [[2.0]] * 4, 0.0)
>>> timing.seconds, timing.busy[0], timing.in_flight          # (m + p - 1) (f + b), m (f + b), p - r
(33.0, 24.0, (4, 3, 2, 1))
"""

from __future__ import annotations

from dataclasses import dataclass

from dnnmem.estimator.schedules.grid import Costs, Grid, Step, starts


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineTiming:
    """What a schedule does with given seconds a step."""

    seconds: float
    """From the first forward to the last backward."""
    busy: tuple[float, ...]
    """Seconds that each rank works."""
    bubble: tuple[float, ...]
    """Seconds that each rank waits: `seconds` less `busy`."""
    in_flight: tuple[int, ...]
    """Most forwards of chunks whose backward has not ended, on each rank: what it holds of activations at once."""


def pipeline_seconds(grid: Grid, forward: Costs, backward: Costs, send_seconds: float = 0.0) -> PipelineTiming:
    """Time `grid`: `forward` and `backward` by rank and chunk, `send_seconds` from one rank to another."""
    began = starts(grid, forward, backward, send_seconds)
    costs = {"F": forward, "B": backward}
    last = [row[-1] + costs[grid[r][-1].phase][r][grid[r][-1].chunk] for r, row in enumerate(began) if row]
    seconds = max(last, default=0.0)
    busy = tuple(sum(costs[step.phase][r][step.chunk] for step in rank) for r, rank in enumerate(grid))
    return PipelineTiming(
        seconds=seconds,
        busy=busy,
        bubble=tuple(seconds - work for work in busy),
        in_flight=tuple(map(in_flight, grid)),
    )


def in_flight(rank: tuple[Step, ...]) -> int:
    """Most forwards of a rank without their backward.

    >>> in_flight((Step("F", 0, 0), Step("F", 1, 0), Step("B", 0, 0), Step("B", 1, 0)))
    2
    """
    held = most = 0
    for step in rank:
        held += 1 if step.phase == "F" else -1
        most = max(most, held)
    return most
