"""Recomputation over lower sets of a graph (Kusumoto, Inoue, Watanabe, Akiba, Koyama 2019).

    L1 < L2 < ... < Lk = all      each closed under "what it is made of"; kept: the boundaries, what of Li others read
    backward, from the last       Li without L(i-1) is made again from the boundaries, used, and dropped

The dynamic program goes over pairs of lower sets with the cheapest (seconds, kept bytes). It is exact over all lower
sets of a small graph; of a larger one it takes those of what one work is made of, as the paper's approximation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.planners.hierarchical import find_with
from dnnmem.estimator.planners.min_cut import Kept, front_of, kept
from dnnmem.estimator.planners.op_graph import Graph
from dnnmem.estimator.planners.problem import Found, Problem
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.units import format_bytes

_ALL = 200
"""Lower sets up to which all of a graph are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A sequence of lower sets."""

    sets: tuple[frozenset[int], ...]
    """Forward works, by index; the last one is all of them."""
    works: frozenset[int]
    """Whose outputs are kept."""
    seconds: float
    """Of what is made again; the last set is not."""
    peak_bytes: int
    """By the paper's formula: what is kept, twice the set at work, and what its successors need."""
    exact: bool
    """True if all lower sets were looked at."""


@dataclass(frozen=True, slots=True)
class _Masks:
    """A graph's forward works as sets of bits."""

    bytes_of: list[int]
    seconds: list[float]
    before: list[int]
    after: list[int]

    def sum(self, mask: int) -> int:
        return sum(self.bytes_of[k] for k in _bits(mask))

    def time(self, mask: int) -> float:
        return sum(self.seconds[k] for k in _bits(mask))

    def near(self, mask: int, edges: list[int]) -> int:
        found = 0
        for k in _bits(mask):
            found |= edges[k]
        return found

    def boundary(self, lower: int) -> int:
        return sum(1 << k for k in _bits(lower) if self.after[k] & ~lower)

    def ahead(self, lower: int) -> int:
        """Bytes of what is made next of a lower set, and of what that is made of besides."""
        next_ones = self.near(lower, self.after) & ~lower
        return self.sum(next_ones) + self.sum(self.near(next_ones, self.before) & ~lower)


def choose(graph: Graph, budget_bytes: float) -> Chosen:
    """The sequence of least time within `budget_bytes`. Raises `InfeasibleError` where none fits."""
    masks = _masks(graph)
    found = _fronts(masks, budget_bytes)
    family, exact = _family(masks)
    everything = (1 << len(masks.seconds)) - 1
    if not found[everything]:
        raise InfeasibleError(
            f"no sequence of lower sets fits {format_bytes(int(budget_bytes))}; {len(family)} sets were looked at",
            needed_bytes=int(budget_bytes) + 1,
            hint="a larger budget",
        )
    seconds, _, peak, sequence = min(found[everything], key=lambda one: one[:2])
    works = _kept(masks, sequence)
    return Chosen(
        sets=tuple(frozenset(_bits(lower)) for lower in sequence), works=works, seconds=seconds, peak_bytes=peak,
        exact=exact,
    )  # fmt: skip


def ways(graph: Graph) -> Sequence[Kept]:
    """What sequences keep of a block, those that no other beats; the whole of it is made again at once."""
    masks = _masks(graph)
    everything = (1 << len(masks.seconds)) - 1
    sets = {_kept(masks, sequence) for *_, sequence in _fronts(masks, float("inf"), last_again=True)[everything]}
    able = ({k for k in works if graph.works[k].keeps} for works in sets)
    return front_of(kept(graph, works) for works in able)


_One = tuple[float, int, int, tuple[int, ...]]
"""Seconds, kept bytes, peak, lower sets so far."""


def _fronts(masks: _Masks, budget: float, *, last_again: bool = False) -> dict[int, list[_One]]:
    """By lower set the sequences up to it that no other beats in both time and kept bytes."""
    family, _ = _family(masks)
    everything = (1 << len(masks.seconds)) - 1
    found: dict[int, list[_One]] = {lower: [] for lower in family}
    found[0] = [(0.0, 0, 0, ())]
    about = {lower: (masks.boundary(lower), masks.ahead(lower)) for lower in family}
    for lower in family:
        found[lower] = _front(found[lower])
        for upper in family:
            if lower & ~upper or lower == upper:
                continue
            boundary, extra = about[upper]
            new = upper & ~lower
            again = masks.time(new & ~boundary) if upper != everything or last_again else 0.0
            more, need = masks.sum(new & boundary), 2 * masks.sum(new) + extra
            for seconds, held, peak, sequence in found[lower]:
                if held + need <= budget:
                    one = (seconds + again, held + more, max(peak, held + need), (*sequence, upper))
                    found[upper].append(one)
    return found


def _front(ones: list[_One]) -> list[_One]:
    best: list[_One] = []
    for one in sorted(ones, key=lambda one: one[:3]):
        if not best or one[1] < best[-1][1]:
            best.append(one)
    return best


def _masks(graph: Graph) -> _Masks:
    count = graph.turn
    maker = {v: k for k in range(count) for v in graph.works[k].makes}
    before = [sum({1 << maker[v] for v in graph.works[k].reads if v in maker}) for k in range(count)]
    after = [sum(1 << j for j in range(count) if before[j] >> k & 1) for k in range(count)]
    sizes = [sum(graph.nbytes[v] for v in graph.works[k].makes) for k in range(count)]
    return _Masks(sizes, [graph.works[k].seconds for k in range(count)], before, after)


def _family(masks: _Masks) -> tuple[list[int], bool]:
    """Lower sets, smaller ones first; True if they are all."""
    count = len(masks.seconds)
    known = {0}
    wanted = [0]
    while wanted and len(known) <= _ALL:
        lower = wanted.pop()
        for k in range(count):
            if not lower >> k & 1 and not masks.before[k] & ~lower and (more := lower | 1 << k) not in known:
                known.add(more)
                wanted.append(more)
    exact = len(known) <= _ALL
    if not exact:
        made_of = [0] * count
        for k in range(count):
            made_of[k] = 1 << k | masks.near(masks.before[k], made_of)
        known = {0, (1 << count) - 1, *made_of}
    return sorted(known, key=lambda lower: (lower.bit_count(), lower)), exact


def _kept(masks: _Masks, sequence: Sequence[int]) -> frozenset[int]:
    return frozenset(k for lower in sequence for k in _bits(masks.boundary(lower)))


def _bits(mask: int) -> list[int]:
    return [k for k in range(mask.bit_length()) if mask >> k & 1]


def find(problem: Problem) -> Found:
    """Boundaries of lower sets of each block, and exactly over blocks."""
    return find_with(problem, ways)


PLANNER = Planner(
    name="kusumoto", words="boundaries of lower sets of each block (Kusumoto et al. 2019)", needs="a chain of blocks",
    find=find,
)  # fmt: skip
