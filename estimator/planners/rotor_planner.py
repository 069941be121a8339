"""Rotor as a planner: of blocks in a chain, those whose recomputation costs least."""

from __future__ import annotations

import math
from dataclasses import replace

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Remat
from dnnmem.estimator.planners.problem import Found, Problem, held
from dnnmem.estimator.planners.remat import named
from dnnmem.estimator.planners.rotor import solve
from dnnmem.estimator.planners.solve import Planner


def find(problem: Problem) -> Found:
    """Rotor's schedule for the budget."""
    chain = problem.chain()
    table = solve(chain, max(problem.trace.peak_bytes() - chain.base_bytes, 1))

    def propose(aim: float) -> Found | None:
        fits = table.seconds_at(aim) < math.inf
        return Found(remat=named(chain, table.runs(aim)), optimal=True) if fits else None

    lightest = [Found(remat=Remat(policy="full"))]
    if (least := table.least_bytes()) < math.inf:
        lightest.append(replace(lightest[0], remat=named(chain, table.runs(least))))
    return held(problem, propose, what="rematerialization", base_bytes=chain.base_bytes, lightest=tuple(lightest))


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
