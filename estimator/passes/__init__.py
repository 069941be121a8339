"""Passes: each rewrites a trace by one field of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import (
    batch,
    compression,
    context,
    experts,
    gradients,
    kernels,
    loss,
    offload,
    offload_optimizer,
    offload_parameters,
    optimizer,
    pipeline,
    precision,
    remat,
    sharding,
    tensor,
)
from dnnmem.estimator.passes.optimizer_first_steps import with_first_steps
from dnnmem.estimator.repeat import repeat

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.trace import Trace

PASSES: Mapping[str, Callable[[Trace, Plan, Cluster | None], Trace]] = {
    "batch": batch.apply,
    "precision": precision.apply,
    "loss": loss.apply,
    "tensor": tensor.apply,
    "context": context.apply,
    "experts": experts.apply,
    "optimizer": optimizer.apply,
    "remat": remat.apply,
    "compression": compression.apply,
    "sharding": sharding.apply,
    "gradients": gradients.apply,
    "offload": offload.apply,
    "offload_optimizer": offload_optimizer.apply,
    "offload_parameters": offload_parameters.apply,
    "pipeline": pipeline.apply,
    "kernels": kernels.apply,
}
"""By field of a plan, in the order of its fields. Each leaves a trace equal where the plan has its default."""

_BEFORE_SPLIT = ("precision", "loss", "tensor", "context", "experts", "optimizer", "remat", "compression")
_AFTER_SPLIT = ("batch", "sharding", "gradients", "offload", "offload_optimizer", "offload_parameters", "kernels")


@collector_paused()
def rewrite(
    trace: Trace, plan: Plan, cluster: Cluster | None = None, layers: int | None = None, rank: int = 0
) -> list[Trace]:
    """The traces of one rank under `plan`: one, or one for each chunk of a pipeline, in the order of the model.

    With `layers` the model has as many blocks as that: what is done to every block alike is done to the few of the
    record, and then repeated; chunks that do the same are one trace. A chunk's gradients stay, and are sent, within
    it, so that batch and sharding come after the split. Which `rank` it is counts where states are in unequal parts
    (`sharding`), and for rings of attention (`context`). Raises what the passes and `repeat` raise.
    """
    if layers is not None and plan.remat.policy not in ("every", "segments", "ops"):
        with suppress(UnsupportedError):  # blocks may differ where they are rewritten, and not where they were recorded
            return _rewritten(trace, plan, cluster, layers, rank)
    if layers is not None:
        trace = repeat(trace, layers)
    return _rewritten(trace, plan, cluster, None, rank)


def _rewritten(trace: Trace, plan: Plan, cluster: Cluster | None, layers: int | None, rank: int) -> list[Trace]:
    return rewrite_chunks(chunks_of(rewrite_model(trace, plan, cluster, rank), plan, layers), plan, cluster, rank)


def chunks_of(trace: Trace, plan: Plan, layers: int | None = None) -> list[Trace]:
    """What follows the first half of `rewrite`: the chunks of a pipeline; `trace` itself where there is none."""
    return pipeline.split(trace, plan) if layers is None else pipeline.split_repeated(trace, plan, layers)


def rewrite_chunks(chunks: Sequence[Trace], plan: Plan, cluster: Cluster | None = None, rank: int = 0) -> list[Trace]:
    """The second half for all chunks of a pipeline: `rewrite_rank` of each, where what is one trace stays one."""
    different = {id(chunk): chunk for chunk in chunks}
    done = {key: rewrite_rank(chunk, plan, cluster, rank) for key, chunk in different.items()}
    return [done[id(chunk)] for chunk in chunks]


def rewrite_model(trace: Trace, plan: Plan, cluster: Cluster | None = None, rank: int = 0) -> Trace:
    """The first half of `rewrite`: what a plan does to the ops of the model and its update, wherever they lie."""
    trace, merged = trace.without_waits(), from_context(plan)
    for field in _BEFORE_SPLIT:
        if field == "context":
            trace = context.apply(trace, plan, cluster, rank)
        else:
            trace = PASSES[field](trace, merged, cluster)
    return trace


def rewrite_rank(trace: Trace, plan: Plan, cluster: Cluster | None = None, rank: int = 0) -> Trace:
    """The second half: what follows the split of the model into stages."""
    plan = from_context(plan)
    for field in _AFTER_SPLIT:
        if field == "sharding":
            trace = sharding.apply(trace, plan, cluster, rank)
        else:
            trace = PASSES[field](trace, plan, cluster)
    if plan.batch.accumulation > 1:
        return batch.with_first_steps(trace)
    return with_first_steps(trace) if plan.mesh.world_size == 1 else trace
