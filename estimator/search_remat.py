"""The rematerialization that a search plans for what sharding and states leave of its budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.coarsen import live_peak
from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.passes import rewrite_rank
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.planners.chain import leaving_parts
from dnnmem.estimator.planners.remat import plan_remat
from dnnmem.estimator.search_core import parts_of, whole_runs
from dnnmem.estimator.trace import Kind

if TYPE_CHECKING:
    from dnnmem.estimator.search_cost import Costs


def planned_remat(costs: Costs, plan: Plan, budget_bytes: float) -> Remat | None:
    """That of a plan that keeps everything; None where nothing fits. Raises what planners raise."""
    longest, full = 1 if plan.sharding.strategy == "zero3" else None, replace(plan, remat=Remat(policy="full"))
    if longest == 1 and max(costs.bound(full).peak_bytes, costs.drawn(full).peak_bytes) > budget_bytes:
        return None
    runs = whole_runs(costs.core(plan))
    if plan not in costs.live:
        costs.live[plan] = live_peak(rewrite_rank(runs, plan, costs.cluster))
    # The chain counts whole states: what sharding takes off them goes on top of the budget.
    shift = live_peak(runs) - costs.live[plan]
    parts = parts_of(plan)[Kind.GRAD]
    try:
        return plan_remat(
            runs, round(budget_bytes) + shift, lambda: leaving_parts(costs.chain(plan), parts), longest=longest,
            peak=lambda trace: live_peak(rewrite_rank(trace, plan, costs.cluster)) + shift,
            kept=costs.live[plan] + shift,
        )  # fmt: skip
    except InfeasibleError:
        return None
