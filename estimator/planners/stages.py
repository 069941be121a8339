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

from collections.abc import Sequence
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
            f"no cuts of {n} blocks into {len(slots)} stages fit", _needed(totals, slots), hint="raise mesh.pp"
        )
    m = microbatches
    cost = [(sum_ * flushes + (m - flushes) * most, way) for sum_, most, way in ways[0]]
    seconds, way = min(cost, key=lambda it: (it[0], tuple(-i for i in it[1])))
    ends = (*way[1:], n)
    stages = tuple(totals.span(i, j) / slots[k].speed for k, (i, j) in enumerate(zip(way, ends, strict=True)))
    return Cuts(firsts=way[1:], seconds=seconds, stage_seconds=stages)
