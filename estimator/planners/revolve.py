"""REVOLVE: a chain of equal steps, reversed with few checkpoints and the fewest steps computed again.

Griewank and Walther 2000. n steps, c checkpoints, the first step's input in one of them; t(n, c) counts the steps that
only run forward, the one in front of each backward step left out:

    t(n, c) = min over k of  k + t(n - k, c - 1) + t(k, c)  =  r n - C(c + r, c + 1),  r least with C(c + r, c) >= n
                             run to k, reverse what lies behind, then what lies before

A schedule is runs within runs: steps 0..k-1 are one, computed again from its input when what lies behind is done.

>>> from dnnmem.estimator.segments import segments_text
>>> advances(10, 3), segments_text(schedule(10, 3))
(15, '0-3(0,1,2),4-6(4,5),7-8(7)')
"""

from __future__ import annotations

from math import comb

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.planners.chain_plans import as_found
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run


def repetitions(n: int, c: int) -> int:
    """r(n, c): how often a step runs forward at most, before the time that its backward step follows."""
    r = 0
    while comb(c + r, c) < n:
        r += 1
    return r


def advances(n: int, c: int) -> int:
    """t(n, c): steps that only run forward, to reverse `n` of them with `c` checkpoints; both 1 or more."""
    r = repetitions(n, c)
    return r * n - comb(c + r, c + 1)


def first_run(n: int, c: int) -> int:
    """The least k of those that reach t(n, c): where the second checkpoint lies; `n` and `c` 2 or more."""
    best = advances(n, c)
    return next(k for k in range(1, n) if k + advances(n - k, c - 1) + advances(k, c) == best)


def schedule(n: int, c: int, first: int = 0) -> tuple[Run, ...]:
    """What is computed again of `n` steps counted from `first`, with `c` checkpoints."""
    if n < 2:
        return ()
    k = first_run(n, c) if c > 1 else n - 1
    run = Run(first=first, last=first + k - 1, inner=schedule(k, c, first))
    return (run, *schedule(n - k, c - 1, first + k)) if c > 1 else (run,)


def find(problem: Problem) -> Found:
    """The schedule with the most checkpoints that fit."""
    return cheapest(problem, plans(problem), what="REVOLVE's schedule")


def plans(problem: Problem) -> list[Found]:
    """The schedules for 1, 2, ... checkpoints. Raises `UnsupportedError` for blocks that are no chain."""
    blocks = one_list(problem)
    tried = (schedule(len(blocks), c, blocks[0]) for c in range(1, len(blocks) + 1))
    return problem.once("revolve", lambda: [as_found(problem, runs) for runs in tried])


def one_list(problem: Problem) -> list[int]:
    """The blocks of the chain. Raises `UnsupportedError` unless each follows the one before."""
    blocks = [stage for stage in problem.chain().stages if stage.block is not None]
    apart = [stage.block for stage in blocks[1:] if not stage.follows]
    if apart:
        raise UnsupportedError(
            f"block {apart[0]} of {problem.recorded.origin.target or 'the model'} does not take what block "
            f"{int(apart[0] or 0) - 1} returns; equal steps follow each other",
            hint="--planner rotor plans for chains in parts",
        )
    return [stage.block for stage in blocks if stage.block is not None]


PLANNER = Planner(
    name="revolve", words="a chain of equal steps with few checkpoints (Griewank and Walther 2000)",
    needs="one list of blocks, each taking what the one before returns; it counts them as equal", find=find,
)  # fmt: skip
