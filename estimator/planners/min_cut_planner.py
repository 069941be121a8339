"""Least cuts as a planner: what PyTorch's compiler keeps of a block for its `activation_memory_budget`, op by op."""

from __future__ import annotations

from dnnmem.estimator.planners.hierarchical import find_with
from dnnmem.estimator.planners.min_cut import cuts
from dnnmem.estimator.planners.problem import Found, Problem
from dnnmem.estimator.planners.solve import Planner


def find(problem: Problem) -> Found:
    """A cut for each block, chosen exactly over blocks."""
    return find_with(problem, cuts)


PLANNER = Planner(
    name="min-cut", words="the fewest bytes to make a block of again (torch's activation_memory_budget)",
    needs="a chain of blocks", find=find,
)  # fmt: skip
