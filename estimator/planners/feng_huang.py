"""The least memory with one recomputation: which of the values that all later ones are made of to keep.

    a -> b -> {c, d} -> e -> f      articulation values: a, b, e, f; kept: some of them, what lies between is made again
    memory = bytes of the kept + the largest segment between two of them

Feng and Huang 2018, "Optimal gradient checkpoint search for arbitrary computation graphs": for each size that the
largest segment may have, the kept of fewest bytes are a shortest way. Blocks in a chain are such segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.op_graph import Graph
from dnnmem.estimator.planners.problem import Found, Problem
from dnnmem.estimator.planners.remat import named
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A choice of places to cut a line of pieces."""

    cuts: tuple[int, ...]
    """Places, 1 = behind the first piece."""
    total_bytes: int
    """What is kept there and the largest segment."""


def split(inside: Sequence[int], between: Sequence[int | None], together: Sequence[bool]) -> Split:
    """Where to cut pieces of `inside` bytes each, for the least memory.

    Args: `between[p]` is what is kept of a cut behind piece p, None where it cannot be kept; `together[p]` says that
    pieces p and p + 1 may lie in one segment.
    """
    count = len(inside)
    sums = [0]
    for size in inside:
        sums.append(sums[-1] + size)
    best: Split | None = None
    for most in sorted({sums[b] - sums[a] for a in range(count) for b in range(a + 1, count + 1)}):
        least: list[tuple[float, int]] = [(0.0, -1)] + [(float("inf"), -1)] * count
        for b in range(1, count + 1):
            room = 0 if b == count else between[b - 1]
            for a in range(b - 1, -1, -1):
                if sums[b] - sums[a] > most or (a < b - 1 and not together[a]):
                    break
                if room is not None and least[a][0] + room < least[b][0]:
                    least[b] = (least[a][0] + room, a)
        if least[count][0] == float("inf") or (best is not None and least[count][0] + most >= best.total_bytes):
            continue
        cuts, b = list[int](), count
        while (b := least[b][1]) > 0:
            cuts.append(b)
        best = Split(cuts=tuple(reversed(cuts)), total_bytes=int(least[count][0]) + most)
    return best or Split(cuts=(), total_bytes=sums[-1])


def points(graph: Graph) -> list[int | None]:
    """Behind each forward work but the last, the only value that later forward works read; None if there are more."""
    last: dict[int, int] = {}
    for k, work in enumerate(graph.works[: graph.turn]):
        last.update(dict.fromkeys(work.reads, k))
    live: set[int] = set()
    found: list[int | None] = []
    for k, work in enumerate(graph.works[: max(graph.turn - 1, 0)]):
        live = {v for v in live | set(work.makes) if last.get(v, -1) > k}
        found.append(next(iter(live)) if len(live) == 1 else None)
    return found


def kept_values(graph: Graph) -> Split:
    """The split of a graph at its articulation values; cuts count forward works."""
    needed = graph.needed()
    inside = [
        sum(graph.nbytes[v] for v in work.makes if v in needed or len(work.makes) == 1)
        for work in graph.works[: graph.turn]
    ]  # fmt: skip
    between = [None if v is None else graph.nbytes[v] for v in points(graph)]
    return split(inside, between, [True] * len(inside))


def runs_of(chain: Chain) -> tuple[Run, ...]:
    """The runs of blocks between kept outputs; what is no block lies by itself."""
    stages = chain.stages
    inside = [stage.saved_bytes for stage in stages]
    between = [stage.input_bytes for stage in stages[1:]]
    together = [after.follows and before.block is not None for before, after in pairwise(stages)]
    found = split(inside, between, together)
    ends = [0, *found.cuts, len(stages)]
    runs = []
    for a, b in pairwise(ends):
        first, last = stages[a].block, stages[b - 1].block
        if first is not None and last is not None:
            runs.append(Run(first=first, last=last))
    return tuple(runs)


def find(problem: Problem) -> Found:
    """Their plan, if it fits: it does not depend on the budget."""
    found = Found(
        remat=named(problem.chain(), runs_of(problem.chain())),
        notes=("the plan of least memory, whatever the budget",),
    )  # fmt: skip
    if (needs := problem.cost(found).peak_bytes) > problem.budget_bytes:
        raise problem.infeasible(needs, "split at articulation values")
    return found


PLANNER = Planner(
    name="feng-huang", words="the least memory with one recomputation (Feng and Huang 2018)",
    needs="a chain of blocks", find=find,
)  # fmt: skip
