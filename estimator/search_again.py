"""What a plan costs at least that computes some blocks again, by runs that are computed again whole."""

from __future__ import annotations

from dataclasses import replace

from dnnmem.estimator.coarsen import live_peak
from dnnmem.estimator.local_step import step_of
from dnnmem.estimator.passes import rewrite_model, rewrite_rank
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.search_core import Cost, Rates, with_costs
from dnnmem.estimator.search_drawn import RUNS_MARGIN
from dnnmem.estimator.segments import blocks_again
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.trace import Trace

CERTAIN = 0.98
"""Blocks that are alike differ by less: the first and the last one have other neighbours."""
_SPARED = 0.996
"""Early stop spares the host ops too: half of that in all that was tried."""


def again_by_runs(runs: Trace, chain: Chain, plan: Plan, again_seconds: float, rates: Rates) -> Cost:
    """By `runs` that keep everything: less what early stop may spare of each block, seconds and its output.

    `again_seconds`: what computing a block again takes. Raises `UnsupportedError` where it needs ops.
    """
    plain = replace(plan, remat=Remat())
    local = rewrite_rank(rewrite_model(runs, Plan(remat=plan.remat)), plain, rates.cluster)
    blocks = [stage for stage in chain.stages if stage.block is not None]
    longest = max((stage.forward_seconds for stage in blocks), default=0.0)
    spared = max(longest - CERTAIN * again_seconds, 0.0) * blocks_again(plan.remat, len(blocks))
    step = with_costs(step_of([local], runs, plan, rates.cluster, 0), rates.runs, rates.model)
    return Cost(
        seconds=time_step(step, rates.model).seconds * _SPARED - spared * plan.batch.accumulation,
        peak_bytes=int(live_peak(local) * RUNS_MARGIN) - max((stage.input_bytes for stage in chain.stages), default=0),
    )
