"""Recursive checkpointing: a run that is computed again is cut into runs itself (Chen, Xu, Zhang, Guestrin 2016).

    2 parts      0-5(0-2(0-1(0)),3-4(3)),6-11(6-8(6-7(6)),9-10(9))

k parts a level: least memory g(n) = k + g(n / (k + 1)), O(log n), for O(n log n) blocks computed again. The last part
of a run is not one of its own: its backward pass comes next.
"""

from __future__ import annotations

from collections.abc import Iterator

from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.chain_plans import as_found
from dnnmem.estimator.planners.chen import groups
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run

_PARTS = 5
"""Tried at most: more parts a level need fewer levels, and all levels are tried."""


def recursive(chain: Chain, parts: int, depth: int) -> tuple[Run, ...]:
    """Each list of blocks in `parts` runs, each of which is cut so again, `depth` levels deep."""
    return tuple(
        Run(first=first, last=last, inner=_cut(first, last, parts, depth - 1))
        for begin, end in groups(chain)
        for first, last in _pieces(begin, end - 1, parts)
    )


def find(problem: Problem) -> Found:
    """The fastest number of parts and of levels that fits."""
    return cheapest(problem, plans(problem), what="recursive checkpoints")


def plans(problem: Problem) -> list[Found]:
    """All numbers of parts and of levels."""
    return problem.once("chen-recursive", lambda: [as_found(problem, runs) for runs in _all(problem.chain())])


def _all(chain: Chain) -> dict[tuple[Run, ...], None]:
    return dict.fromkeys(recursive(chain, parts, depth) for parts, depth in _levels(chain))


def _levels(chain: Chain) -> Iterator[tuple[int, int]]:
    """Parts, and levels until nothing is left to cut."""
    longest = max((end - begin for begin, end in groups(chain)), default=0)
    for parts in range(2, _PARTS + 1):
        depth = 1
        while parts ** (depth - 1) < longest:
            yield parts, depth
            depth += 1


def _cut(first: int, last: int, parts: int, depth: int) -> tuple[Run, ...]:
    if depth <= 0 or first == last:
        return ()
    *some, (begin, end) = _pieces(first, last, parts)
    runs = [Run(first=a, last=b, inner=_cut(a, b, parts, depth - 1)) for a, b in some]
    return (*runs, *_cut(begin, end, parts, depth - 1))


def _pieces(first: int, last: int, parts: int) -> list[tuple[int, int]]:
    """Blocks `first` to `last` in up to `parts` pieces, the longer ones first."""
    count = last - first + 1
    parts = min(parts, count)
    size, longer = divmod(count, parts)
    found: list[tuple[int, int]] = []
    for n in range(parts):
        end = first + size + (n < longer) - 1
        found.append((first, end))
        first = end + 1
    return found


PLANNER = Planner(
    name="chen-recursive", words="runs within runs, down to single blocks (Chen et al. 2016)",
    needs="a chain of blocks", find=find,
)  # fmt: skip
