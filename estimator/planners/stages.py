"""Where to cut a model into pipeline stages: runs of blocks that take about as long as each other, and fit.

    blocks    [e b0 b1 b2 b3 | b4 b5 b6 b7 b8 | b9 b10 b11 h]     e, h: embeddings and head are work of their stage

    step(cuts) = sum of t_k + (m - 1) max of t_k       t_k = forward and backward of stage k, at the speed of its GPU

That is the time of 1F1B and GPipe with a flush (DAPPLE, arXiv 2007.01045); without one the sum does not count
(PipeDream, arXiv 1806.03377). Exact by dynamic programming over contiguous cuts, as PipeDream, RaNNC (2103.16063),
Piper (2110.01702) and MadPipe have it: of all ways to cut what is left of a block into k stages, those are kept that no
other beats in both sum and maximum. A stage must hold its weights and what its place in the schedule keeps in flight.

>>> units = [Unit(seconds=s) for s in (1, 1, 1, 3)]
>>> cut = best_cuts(units, [Slot(), Slot()], microbatches=8)
>>> cut.firsts, cut.seconds
((3,), 27.0)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from dnnmem.estimator.errors import InfeasibleError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A block, with what is before the first or after the last."""

    seconds: float
    """Forward and backward pass of a micro-batch, on a GPU of speed 1."""
    resting_bytes: int = 0
    """Weights, gradients, states."""
    weight_bytes: int = 0
    """The weights of those."""
    held_bytes: int = 0
    """Kept of a micro-batch from the forward to the backward pass."""
    working_bytes: int = 0
    """Most that lives besides while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place in the pipeline: the GPU of a stage."""

    speed: float = 1.0
    """Of its GPU."""
    room_bytes: int | None = None
    """What a stage may hold there; None = any number."""
    in_flight: int = 1
    """Micro-batches that it holds at once."""
    versions: int = 1
    """Of its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """An answer."""

    firsts: tuple[int, ...]
    """First unit of each stage but the first: `Pipeline.cuts`."""
    seconds: float
    """Of a step, messages and update left out."""
    stage_seconds: tuple[float, ...]
    """Of each stage and micro-batch."""

    @property
    def text(self) -> str:
        """As a plan has it."""
        return ",".join(map(str, self.firsts))


_Way = tuple[float, float, tuple[int, ...]]
"""Sum and maximum of stages' seconds, and where they begin."""


def best_cuts(units: Sequence[Unit], slots: Sequence[Slot], microbatches: int, *, flushes: bool = True) -> Cuts:
    """The fastest cuts of `units` into a stage a slot, the latest of equals.

    Raises `UsageError` for fewer units than slots, `InfeasibleError` where no cuts fit.
    """
    # n units, k slots; ways[i] = those of what begins at unit i in the slots from k on
    n = len(units)
    if n < len(slots):
        raise UsageError(f"{n} blocks make no {len(slots)} stages; each needs one", hint="lower mesh.pp")
    totals = _Totals(units)
    ways: list[list[_Way]] = [[] for _ in range(n)] + [[(0.0, 0.0, ())]]
    for k in range(len(slots) - 1, -1, -1):
        ways = [
            _undominated(
                (t + sum_, max(t, most), (i, *rest))
                for j in range(i + 1, n + 1)
                if (t := totals.seconds(i, j, slots[k])) is not None
                for sum_, most, rest in ways[j]
            )
            for i in range(n)
        ] + [[]]
    if not ways[0]:
        raise InfeasibleError(
            f"no cuts of {n} blocks into {len(slots)} stages fit their GPUs",
            needed_bytes=_needed(totals, slots),
            hint="raise mesh.pp",
        )
    m = microbatches
    cost = [(sum_ * flushes + (m - flushes) * most, way) for sum_, most, way in ways[0]]
    seconds, way = min(cost, key=lambda it: (it[0], tuple(-i for i in it[1])))
    ends = (*way[1:], n)
    stages = tuple(totals.span(i, j) / slots[k].speed for k, (i, j) in enumerate(zip(way, ends, strict=True)))
    return Cuts(firsts=way[1:], seconds=seconds, stage_seconds=stages)


def _needed(totals: _Totals, slots: Sequence[Slot]) -> int:
    """The least room of equal GPUs with which some cuts fit."""
    best = [0] * (totals.count + 1)
    for k in range(len(slots) - 1, -1, -1):
        last = k == len(slots) - 1
        best = [
            min(
                (
                    max(totals.held(i, j, slots[k]), best[j])
                    for j in range(i + 1, totals.count + 1)
                    if (j == totals.count) == last
                ),
                default=1 << 62,
            )
            for i in range(totals.count)
        ] + [1 << 62]
    return best[0]


class _Totals:
    """Sums over runs of units."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units, self.count = units, len(units)
        self._seconds = (0.0, *accumulate(u.seconds for u in units))
        self._resting = (0, *accumulate(u.resting_bytes for u in units))
        self._kept = (0, *accumulate(u.held_bytes for u in units))

    def span(self, i: int, j: int) -> float:
        """Seconds of units i .. j - 1."""
        return self._seconds[j] - self._seconds[i]

    def held(self, i: int, j: int, slot: Slot) -> int:
        """Bytes of those units in a slot: versions of weights, micro-batches in flight, and work in one of them."""
        resting, kept = self._resting[j] - self._resting[i], self._kept[j] - self._kept[i]
        extra = (slot.versions - 1) * sum(u.weight_bytes for u in self.units[i:j]) if slot.versions > 1 else 0
        return resting + extra + slot.in_flight * kept + max(u.working_bytes for u in self.units[i:j])

    def seconds(self, i: int, j: int, slot: Slot) -> float | None:
        """Seconds of those units in a slot, None if they do not fit."""
        if slot.room_bytes is not None and self.held(i, j, slot) > slot.room_bytes:
            return None
        return self.span(i, j) / slot.speed


def _undominated(ways: Iterable[_Way]) -> list[_Way]:
    """Those that no other is as good as in both sum and maximum; of equals the latest cuts."""
    found: list[_Way] = []
    for way in sorted(ways, key=lambda it: (it[0], it[1], tuple(-i for i in it[2]))):
        if not found or way[1] < found[-1][1]:
            found.append(way)
    return found
