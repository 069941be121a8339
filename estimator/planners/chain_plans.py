"""Schedules of a chain as answers: in the words of a plan, with what the chain says that they take."""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.estimator.host_link import copy_bytes_per_s
from dnnmem.estimator.plan import Offload
from dnnmem.estimator.planners.chain_cost import chain_cost
from dnnmem.estimator.planners.problem import Cost, Found, Problem
from dnnmem.estimator.planners.remat import named
from dnnmem.estimator.planners.rotor import Table, solve
from dnnmem.estimator.segments import Run
from dnnmem.estimator.sent_blocks import blocks_text

PLANS = 48
"""Budgets that are planned for, evenly from the least to all."""


def as_found(problem: Problem, runs: Sequence[Run], sent: Sequence[int] = (), *, optimal: bool = False) -> Found:
    """Runs that are computed again, and blocks that send what they save, as an answer."""
    chain = problem.chain()
    took = chain_cost(chain, runs, sent, copy_bytes_per_s(problem.cluster, problem.model))
    own = sum(stage.forward_seconds + stage.backward_seconds for stage in chain.stages)
    return Found(
        remat=named(chain, runs),
        offload=Offload(activations="blocks", blocks=blocks_text(sent)) if sent else Offload(),
        expected=Cost(
            peak_bytes=chain.base_bytes + took.peak_bytes, seconds=problem.plain().seconds + took.seconds - own
        ),
        optimal=optimal,
    )


def table_of(problem: Problem) -> Table:
    """Rotor's, for all budgets up to what the plain step takes."""
    chain = problem.chain()
    return solve(chain, float(max(problem.trace.peak_bytes() - chain.base_bytes, 1)))
