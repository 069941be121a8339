"""The largest batch that fits a GPU, and the one beyond which a larger one gains little: sizes refit, never tried out.

fits(8) fits(16) fits(32) no(64) fits(48) no(56) ... = 50        doubling, then halving the gap
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.estimate import price
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.time_model import TimeModel
from dnnmem.estimator.trace import Trace

MOST = 1 << 20
"""Samples of a batch, at most."""
KNEE = 0.9
"""Share of the best throughput that the knee's batch has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a batch needs and gives."""

    batch: int
    """Samples."""
    reserved_bytes: int
    """Of the allocator."""
    step_seconds: float
    """Of a step."""
    samples_per_second: float
    """`batch` by that."""


def point(trace: Trace, layers: int | None, cluster: Cluster, model: TimeModel) -> Point:
    """What the step of `trace` needs and gives on one GPU."""
    found = price(local_step(trace, Plan(), cluster, layers), model)
    return Point(
        batch=found.samples,
        reserved_bytes=found.peak_reserved_bytes or 0,
        step_seconds=found.step_seconds,
        samples_per_second=found.samples / found.step_seconds if found.step_seconds else 0.0,
    )


def largest(fits: Callable[[int], bool], step: int = 1) -> int:
    """The largest multiple of `step` that fits, where what is larger never does; 0 if none does.

    >>> largest(lambda n: n <= 50), largest(lambda n: n <= 50, 8), largest(lambda n: False)
    (50, 48, 0)
    """
    high = 1
    while high * step <= MOST and fits(high * step):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step


def knee(points: list[Point]) -> Point | None:
    """The smallest batch with `KNEE` of the best throughput; None without points."""
    best = max((p.samples_per_second for p in points), default=0.0)
    return min((p for p in points if p.samples_per_second >= KNEE * best), key=lambda p: p.batch, default=None)
