"""The plot of candidates: memory over time, with cost as a third, and the line of those that nothing beats.

    memory |   o 4                 a circle's area is what a step costs;
           |- - - - - - - limit    filled: no other candidate is better in memory, speed and cost at once
           |  @ 1---.   o 5
           |         @ 3
           +-------------- time of a step, or samples a second where the candidates' steps are not of one size

>>> nice_ticks(0, 10), nice_ticks(0.2, 0.9)
([0, 2, 4, 6, 8, 10], [0.2, 0.4, 0.6, 0.8])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dnnmem.cli.render.html.estimate import total_bytes
from dnnmem.estimator.report import Candidate
from dnnmem.estimator.units import format_bytes, format_number, format_seconds

_RADII = (6.0, 15.0)
"""Pixels of the cheapest and of the dearest."""
_MARGIN = 0.08
"""Of the axes, beyond the outermost circles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A candidate's place."""

    rank: int
    """0 = the baseline."""
    x: float
    """Percent from the left."""
    y: float
    """Percent from the top."""
    radius: float
    """Pixels."""
    css: str
    """`pareto`, `baseline`, `over`: what it is, for its looks."""
    words: str
    """All of it in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """The picture."""

    points: tuple[Point, ...]
    """Large circles first, so that small ones lie on top."""
    x_ticks: tuple[tuple[float, str], ...]
    """Percent from the left, label."""
    y_ticks: tuple[tuple[float, str], ...]
    """Percent from the top, label."""
    x_label: str
    """What the axis is, and which end is better."""
    frontier: str
    """Line through the candidates that nothing beats, in a box of 1,000 by 1,000; empty for fewer than two."""
    limit: float | None
    """Percent from the top: what a GPU offers less the headroom; None if it is far above all."""
    limit_label: str
    """The limit in words."""
    has_cost: bool
    """Circles differ by cost."""


def plot(candidates: Sequence[Candidate], limit_bytes: int) -> Plot | None:
    """The picture of the candidates whose memory is known; None for fewer than two."""
    known = [c for c in candidates if total_bytes(c.estimate) is not None and c.estimate.step_seconds]
    if len(known) < 2:
        return None
    one_size = len({c.estimate.samples for c in known}) == 1
    times = [c.estimate.step_seconds if one_size else c.estimate.samples / c.estimate.step_seconds for c in known]
    sizes = [total_bytes(c.estimate) or 0 for c in known]
    low, high = _range(times)
    top = max(sizes) * (1 + _MARGIN)
    shown = limit_bytes <= 1.5 * max(sizes)
    top = max(top, limit_bytes * (1 + _MARGIN)) if shown else top
    costs = [_cost(c) for c in known]
    rows = [
        Point(
            rank=c.rank,
            x=round(100 * (time - low) / (high - low), 3),
            y=round(100 - 100 * size / top, 3),
            radius=_radius(cost, costs),
            css=_css(c),
            words=_words(c),
        )
        for c, time, size, cost in zip(known, times, sizes, costs, strict=True)
    ]
    best = sorted((p.x, p.y) for p, c in zip(rows, known, strict=True) if c.pareto)
    words = format_seconds if one_size else format_number
    return Plot(
        points=tuple(sorted(rows, key=lambda p: (-p.radius, -p.rank))),
        x_ticks=tuple((round(100 * (t - low) / (high - low), 3), words(t)) for t in nice_ticks(low, high)),
        y_ticks=tuple((round(100 - 100 * t / top, 3), format_bytes(round(t))) for t in _byte_ticks(top)),
        x_label="time of a step (left is faster)" if one_size else "samples a second (right is faster)",
        frontier="M" + "L".join(f"{10 * x:.0f},{10 * y:.0f}" for x, y in best) if len(best) > 1 else "",
        limit=round(100 - 100 * limit_bytes / top, 3) if shown else None,
        limit_label=f"{format_bytes(limit_bytes)}: what may be used of a GPU",
        has_cost=len(set(costs)) > 1,
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers within `low` and `high`."""
    raw = (high - low) / 5
    if raw <= 0:
        return [low]
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _byte_ticks(top: float) -> list[float]:
    unit = 2.0 ** (10 * int(math.log2(max(top, 1)) // 10))
    return [tick * unit for tick in nice_ticks(0, top / unit)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * _MARGIN or high * 0.1
    return (0.0 if low < 0.3 * high else low - pad), high + pad


def _cost(candidate: Candidate) -> float | None:
    """USD for a sample, in the middle of the range."""
    price, samples = candidate.estimate.usd_per_step, candidate.estimate.samples
    return None if price is None or not samples else sum(price) / 2 / samples


def _radius(cost: float | None, costs: Sequence[float | None]) -> float:
    """Area over cost, between the two radii."""
    known = [c for c in costs if c is not None]
    low, high = _RADII
    if cost is None or max(known) == min(known):
        return (low + high) / 2
    part = (cost - min(known)) / (max(known) - min(known))
    return round(math.sqrt(low * low + part * (high * high - low * low)), 2)


def _css(candidate: Candidate) -> str:
    names = [
        name
        for name, is_so in (
            ("baseline", candidate.rank == 0),
            ("pareto", candidate.pareto),
            ("over", candidate.estimate.fits is False),
        )
        if is_so
    ]
    return " ".join(names)


def _words(candidate: Candidate) -> str:
    found = candidate.estimate
    name = "Your step" if candidate.rank == 0 else f"Rank {candidate.rank}"
    what = ", ".join(candidate.techniques) or "the plain step"
    price = found.usd_per_step
    cost = "" if price is None else f", {price[0]:.3g} to {price[1]:.3g} USD a step"
    over = "; does not fit" if found.fits is False else ""
    return (
        f"{name}: {what}: {format_seconds(found.step_seconds)} a step, {format_bytes(total_bytes(found))}{cost}{over}"
    )
