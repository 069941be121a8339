"""What a schedule of a chain takes, by going through it: its peak, and the seconds that no overlap makes less.

    forward    keep | run: its input | send: leaves while the next unit runs          live bytes go up
    backward   in reverse; a run is a chain of its own then                            and down, gradients stay

Recomputation alone is exact; what travels may take longer, where compute waits for it block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.segments import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCost:
    """Of forward and backward pass."""

    seconds: float
    """At least."""
    peak_bytes: int
    """What is allocated above the chain's base, at most."""


def chain_cost(
    chain: Chain, runs: Sequence[Run], sent: Sequence[int] = (), bytes_per_s: float = float("inf")
) -> ChainCost:
    """Of `runs`, counted in blocks, that are computed again, and blocks that send what they save (a run's first)."""
    at = {stage.block: k for k, stage in enumerate(chain.stages) if stage.block is not None}
    walk = _Walk(chain.stages, at, frozenset(at[block] for block in sent))
    again = walk.part(0, len(chain.stages) - 1, runs, 0)
    forward = sum(stage.forward_seconds for stage in chain.stages)
    backward = sum(stage.backward_seconds for stage in chain.stages) + again
    travel = walk.sent_bytes / bytes_per_s
    return ChainCost(seconds=max(forward, travel) + max(backward, travel), peak_bytes=walk.peak_bytes)


@dataclass(slots=True)
class _Unit:
    """What is left on the tape."""

    first: int
    run: Run | None
    live: int
    """Alive before it."""
    travels: int
    """What the unit before sent."""


class _Walk:
    """Goes through a chain and its runs."""

    def __init__(self, stages: Sequence[Stage], at: Mapping[int, int], sent: frozenset[int]) -> None:
        self.stages, self.at, self.sent = stages, at, sent
        self.peak_bytes = 0
        self.sent_bytes = 0

    def part(self, s: int, t: int, runs: Sequence[Run], live: int) -> float:
        """The stages `s` to `t` with `live` bytes besides: seconds of what is computed again."""
        starts = {self.at[run.first]: run for run in runs}
        outer = t == len(self.stages) - 1
        tape, k = list[_Unit](), s
        kept, travels, shared = live, 0, True
        while k <= t:
            run = starts.get(k)
            end = self.at[run.last] + 1 if run else k + 1
            tape.append(_Unit(k, run, kept, travels))
            self._forward(k, end, run, kept + travels + self.stages[t].gradient_bytes)
            sends = outer and k in self.sent
            kept += self._kept(k, end, run, sends=sends, shared=shared)
            if outer and not self._is_between(k):
                travels = self._travels(k, run) if sends else 0
                shared = not sends and run is None
            k = end
        return sum(self._backward(unit, t) for unit in reversed(tape))

    def _forward(self, k: int, end: int, run: Run | None, live: int) -> None:
        for j in range(k, end):
            stage = self.stages[j]
            need = stage.light_bytes + (stage.input_bytes if j > k else 0) if run else stage.forward_bytes
            self.peak_bytes = max(self.peak_bytes, live + need)

    def _kept(self, k: int, end: int, run: Run | None, *, sends: bool, shared: bool) -> int:
        stage = self.stages[k]
        kept = self.stages[end].input_bytes if run else stage.saved_bytes
        if not sends:
            return kept
        taken = stage.sent_input_bytes + (0 if shared else stage.sent_shared_bytes)
        return kept - (min(taken, stage.input_bytes) if run else stage.sent_own_bytes + taken)

    def _travels(self, k: int, run: Run | None) -> int:
        nbytes = self.stages[k].input_bytes if run else self.stages[k].sent_bytes
        self.sent_bytes += nbytes
        return nbytes

    def _is_between(self, k: int) -> bool:
        """What travels goes on while a stage runs that is no block."""
        return self.stages[k].block is None and k < max(self.at.values(), default=0)

    def _backward(self, unit: _Unit, t: int) -> float:
        end = self.at[unit.run.last] + 1 if unit.run else unit.first + 1
        left = sum(stage.left_bytes for stage in self.stages[end : t + 1])
        live = unit.live + unit.travels + left
        if unit.run:
            again = sum(stage.forward_seconds for stage in self.stages[unit.first : end])
            again -= self.stages[end - 1].spared_seconds
            return again + self.part(unit.first, end - 1, unit.run.inner, live)
        self.peak_bytes = max(self.peak_bytes, live + self.stages[unit.first].backward_bytes)
        return 0.0
