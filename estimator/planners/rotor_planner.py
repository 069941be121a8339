"""Rotor as a planner: of blocks in a chain, those whose recomputation costs least.

Its plans for budgets all over the range, and those of simpler planners, which are among the plans it weighs, are held
against the step itself: the chain's numbers leave out what the allocator loses to fragments.
"""

from __future__ import annotations

import math
from contextlib import suppress

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.planners import chen_recursive, revolve
from dnnmem.estimator.planners.chain_plans import PLANS, as_found, table_of
from dnnmem.estimator.planners.chen import every_length
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner


def plans(problem: Problem) -> list[Found]:
    """Rotor's, from the one with the least memory to the one that keeps everything; then the simpler planners'."""
    return problem.once("rotor", lambda: [*_by_budget(problem), *_simpler(problem)])


def _simpler(problem: Problem) -> list[Found]:
    found = [*every_length(problem), *chen_recursive.plans(problem)]
    with suppress(UnsupportedError):
        found += revolve.plans(problem)
    return found


def _by_budget(problem: Problem) -> list[Found]:
    table = table_of(problem)
    least, most = table.least_bytes(), table.slot_bytes * table.rows
    if not math.isfinite(least):
        return []
    aims = (least + (most - least) * k / (PLANS - 1) for k in range(PLANS))
    return [as_found(problem, runs, optimal=True) for runs in dict.fromkeys(table.runs(aim) for aim in aims)]


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
