"""Rotor as a planner: of blocks in a chain, those whose recomputation costs least.

Its plans for budgets all over the range, and periodic checkpoints, which are among the plans it weighs, are held
against the step itself; the chain's numbers leave out what the allocator loses to fragments.
"""

from __future__ import annotations

import math

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.chen import every_length
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.remat import named
from dnnmem.estimator.planners.rotor import solve
from dnnmem.estimator.planners.solve import Planner

_PLANS = 48
"""Budgets that are planned for, evenly from the least to all."""


def plans(problem: Problem) -> list[Found]:
    """Rotor's, from the one with the least memory to the one that keeps everything; then periodic ones."""
    chain = problem.chain()
    return [*_by_budget(chain, float(max(problem.trace.peak_bytes() - chain.base_bytes, 1))), *every_length(chain)]


def _by_budget(chain: Chain, most: float) -> list[Found]:
    table = solve(chain, most)
    least = table.least_bytes()
    if not math.isfinite(least):
        return []
    aims = (least + (most - least) * k / (_PLANS - 1) for k in range(_PLANS))
    runs = dict.fromkeys(table.runs(aim) for aim in aims)
    return [Found(remat=named(chain, some), optimal=True) for some in runs]


def find(problem: Problem) -> Found:
    """Rotor's fastest schedule that fits."""
    return cheapest(problem, plans(problem), what="rematerialization")


def suits(problem: Problem) -> str:
    """For every chain."""
    try:
        stages = problem.chain().stages
    except UnsupportedError:
        return ""
    count = sum(stage.block is not None for stage in stages)
    return f"its {count} blocks run one after the other" if count > 1 else ""


PLANNER = Planner(
    name="rotor", words="which blocks to compute again, exactly (Beaumont et al. 2019)", needs="a chain of blocks",
    find=find, suits=suits,
)  # fmt: skip
