"""What ranks that share the batch send each other at least: seconds of a lane that compute may hide, or cannot.

    FSDP2       every micro-batch: gather all, forward, gather what was dropped, backward        no step is faster than
    replicas    once a step: sum all gradients                                                   what its lane carries
    pipelines   the sums come after the last micro-batch, and nothing hides them

Few large messages take no longer than many small ones, so that what is sent counts as one of each kind.
"""

from __future__ import annotations

from typing import NamedTuple

from dnnmem.estimator.collectives import Group, collective_seconds, group_of
from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.plan import Gradients, Plan
from dnnmem.estimator.search_core import Core, Rates

_CERTAIN = 0.98
"""Some parameters are gathered with others, or not dropped: less than that in the spaces that tests price whole."""


class Traffic(NamedTuple):
    """Seconds of a step, at least."""

    beside: float
    """Of the lane of messages, while the passes run."""
    after: float
    """Of messages behind the last micro-batch of a pipeline."""


def least_traffic(core: Core, plan: Plan, rates: Rates) -> Traffic:
    """Those of `plan`, whose passes `core` has; nothing where only some gradients are sent, or experts lie apart."""
    merged, stages = from_context(plan), plan.mesh.pp
    if plan.mesh.ep > 1 or merged.mesh.data_ranks == 1:
        return Traffic(0.0, 0.0)
    summed = plan.gradients == Gradients() and plan.precision.grad is None
    grads = core.gradient_bytes / stages if summed else 0.0

    def sent(kind: str, nbytes: float, group: Group) -> float:
        return collective_seconds(kind, nbytes, group, rates.cluster, rates.model) * _CERTAIN

    shards, replicas = (group_of(merged.mesh, axis, rates.cluster) for axis in ("dp_shard", "dp_replicate"))
    if not plan.splits_parameters:
        kind = "reduce_scatter" if merged.sharding.even_parts else "all_reduce"
        once, gathers = sent(kind, grads, shards if shards.size > 1 else replicas), 0.0
    else:
        once = sent("reduce_scatter", grads, shards) + sent("all_reduce", grads / shards.size, replicas)
        gathers = sent("all_gather", core.gathered_bytes[0], shards)
        if plan.sharding.strategy == "zero3" and plan.sharding.reshard_after_forward:
            gathers += sent("all_gather", core.gathered_bytes[1], shards)
    if stages > 1:
        return Traffic(0.0, once)
    return Traffic(gathers * plan.batch.accumulation + once, 0.0)
