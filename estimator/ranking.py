"""The order in which priced plans are told, and which of them the time model cannot tell apart.

Two plans of one search share their errors: if products are slower than modelled, they are so in both. What is uncertain
is the difference alone, kind of work by kind (arithmetic, traffic, communication, host), in seconds s of a step:

    d = sum over kinds of (s_a - s_b)        sigma^2 = sum over kinds of (spread_kind * (s_a - s_b))^2

They are tied if |d| is below 1.645 sigma (the sign is then less than nine in ten sure) or below half a percent, and in
any case within 2 percent. Of plans tied with the best one left, the one of fewest techniques goes first; of these, the
one that needs least memory.

>>> uncertain({"arithmetic": 1, "traffic": 0.5}, {"arithmetic": 1, "traffic": 0.7}, {"traffic": 0.1, "arithmetic": 0})
0.02
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from dnnmem.estimator.estimate import NINE_OF_TEN, Estimate, by_kind
from dnnmem.estimator.search import Priced

TIE_WINDOW = 0.02
"""Plans further apart than this share of the faster one's seconds are never tied."""
TIE_FLOOR = 0.005
"""Steps that differ by less than this share are one to whoever measures them."""

Key = Callable[[Priced], float]


def ranked(found: Sequence[Priced], key: Key, spread: Mapping[str, float] | None) -> list[Priced]:
    """`found`, best first; `spread` None breaks no ties but equal keys (for objectives other than time)."""
    left = sorted(found, key=lambda priced: (key(priced), priced.choice.count))
    order: list[Priced] = []
    while left:
        near = [p for p in left if p is left[0] or (spread is not None and tied(left[0].estimate, p.estimate, spread))]
        chosen = min(near, key=lambda p: (p.choice.count, p.estimate.peak_reserved_bytes or 0, key(p)))
        order.append(chosen)
        left.remove(chosen)
    return order


def tied(a: Estimate, b: Estimate, spread: Mapping[str, float]) -> bool:
    """Whether the model cannot say which of two plans takes less time for a sample and GPU."""
    per_a, per_b = (e.plan.mesh.world_size / max(e.samples, 1) for e in (a, b))
    least = min(a.step_seconds * per_a, b.step_seconds * per_b)
    apart = abs(a.step_seconds * per_a - b.step_seconds * per_b)
    if apart > TIE_WINDOW * least:
        return False
    mine, theirs = by_kind(a.classes, a.breakdown), by_kind(b.classes, b.breakdown)
    mine, theirs = ({k: s * per for k, s in kinds.items()} for kinds, per in ((mine, per_a), (theirs, per_b)))
    return apart <= max(TIE_FLOOR * least, NINE_OF_TEN * uncertain(mine, theirs, spread))


def uncertain(a: Mapping[str, float], b: Mapping[str, float], spread: Mapping[str, float]) -> float:
    """One standard deviation of the difference of two times, in seconds."""
    return round(math.sqrt(sum((spread[kind] * (a[kind] - b[kind])) ** 2 for kind in a)), 12)


def pareto(found: Sequence[Estimate]) -> list[bool]:
    """Of each: whether no other one is as good in memory, speed and cost, and better in one of them."""
    points = [_point(estimate) for estimate in found]
    return [not any(_beats(other, point) for other in points) for point in points]


def _point(e: Estimate) -> tuple[float, float, float]:
    seconds = e.step_seconds / max(e.samples, 1)
    return float(e.peak_reserved_bytes or 0), seconds, seconds * e.plan.mesh.world_size


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
