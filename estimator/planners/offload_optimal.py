"""Optimal offloading: which blocks send what they save to the host, so that compute waits least; nothing is done again.

Beaumont, Eyraud-Dubois and Shilova 2020, "Optimal GPU-CPU offloading strategies for deep neural network training".
Whole blocks travel, so the problem is hard in general; with what leaves during the next block it is solved exactly, by
POFO's table without recomputation. The relaxation, where parts of blocks travel, is a bound from below:

    when the forward pass is over, X = saved - budget bytes are gone:  seconds >= max(F, X / rate) + max(B, X / rate)
"""

from __future__ import annotations

from dataclasses import replace

from dnnmem.estimator.host_link import copy_bytes_per_s
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.pofo_planner import schedules
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner


def bound_seconds(chain: Chain, budget_bytes: float, bytes_per_s: float) -> float:
    """Forward and backward pass take no less within `budget_bytes` above the chain's base, if nothing is done again."""
    stages = chain.stages
    saved = sum(stage.saved_bytes for stage in stages)
    gone = max(saved - budget_bytes, 0) / bytes_per_s
    forward = sum(stage.forward_seconds for stage in stages)
    backward = sum(stage.backward_seconds for stage in stages)
    return max(forward, gone) + max(backward, gone)


def find(problem: Problem) -> Found:
    """The fastest that fits, and how far it is from the bound."""
    found = cheapest(problem, schedules(problem, runs=False), what="activations on the host")
    chain, plain = problem.chain(), problem.plain()
    own = sum(stage.forward_seconds + stage.backward_seconds for stage in chain.stages)
    least = bound_seconds(
        chain, problem.budget_bytes - chain.base_bytes, copy_bytes_per_s(problem.cluster, problem.model)
    )
    seconds = problem.cost(found).seconds
    return replace(found, gap=max(seconds - (plain.seconds - own + least), 0.0) / seconds)


PLANNER = Planner(
    name="offload", words="which blocks to send to the host (Beaumont et al. 2020)", needs="a chain of blocks, a host",
    find=find,
)  # fmt: skip
