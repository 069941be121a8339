"""Periodic checkpointing: runs of k blocks each keep the input of their first (Chen, Xu, Zhang, Guestrin 2016).

    k = 4        0-3,4-7,8-11

With equal blocks the memory is least near k = sqrt(blocks); here each k is held against the step itself.
"""

from __future__ import annotations

from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.chain_plans import as_found
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run


def periodic(chain: Chain, length: int) -> tuple[Run, ...]:
    """Runs of up to `length` blocks over the whole chain; where one does not follow the other, a run ends early."""
    return tuple(
        Run(first=first, last=min(first + length, end) - 1)
        for begin, end in groups(chain)
        for first in range(begin, end, length)
    )


def groups(chain: Chain) -> list[tuple[int, int]]:
    """Blocks that each take what the one before returns: the first of them, and the one behind the last."""
    found: list[tuple[int, int]] = []
    for stage in chain.stages:
        if stage.block is None:
            continue
        if found and stage.follows and found[-1][1] == stage.block:
            found[-1] = found[-1][0], stage.block + 1
        else:
            found.append((stage.block, stage.block + 1))
    return found


def every_length(problem: Problem) -> list[Found]:
    """Periodic checkpoints of all lengths."""
    chain = problem.chain()
    longest = max((end - begin for begin, end in groups(chain)), default=0)
    return [as_found(problem, periodic(chain, length)) for length in range(1, longest + 1)]


def find(problem: Problem) -> Found:
    """The fastest period that fits."""
    return cheapest(problem, problem.once("chen", lambda: every_length(problem)), what="periodic checkpoints")


PLANNER = Planner(
    name="chen", words="runs of equal length keep their first input (Chen et al. 2016)", needs="a chain of blocks",
    find=find,
)  # fmt: skip
