"""Data parallelism: who holds parameters, gradients and optimizer states, and what ranks send each other.

    strategy      parameters   gradients   states      sent each step (P bytes of parameters, N ranks)
    ddp           whole        whole       whole       all_reduce P
    zero1         whole        whole       about 1/N   all_reduce P, broadcast P       each parameter is one rank's
    zero2         1 / N *      1 / N       1 / N       all_gather P, reduce_scatter P  * whole from forward to backward
    zero3         1 / N        1 / N       1 / N       all_gather 2 P, reduce_scatter P (gathered once if kept)

    even_parts    of each gradient bucket and its states every rank has an equal part, parameters are whole always
    zero1         whole        whole       1 / N       reduce_scatter P, all_gather P
    zero2         whole        1 / N       1 / N       reduce_scatter P, all_gather P

After Rajbhandari et al. 2020 (ZeRO), Li et al. 2020 (DDP) and PyTorch: DistributedDataParallel, ZeroRedundancyOptimizer
and FSDP2. With `dp_replicate` above 1, sharded strategies also all-reduce their parts over the replicas (HSDP).

What the first of these calls ZeRO-R is said elsewhere: activations in parts are `tensor.sequence_parallel` under
recomputation, on the host with `offload.activations` too; buffers of one size are `bucket_mib`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.passes.buckets import reduce_gradients
from dnnmem.estimator.passes.fsdp import shard
from dnnmem.estimator.passes.replicas import replicate

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.trace import Trace


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None, rank: int = 0) -> Trace:
    """A rank's step under `plan.sharding` among `plan.mesh.data_ranks`; unchanged for one rank.

    Ranks differ in the states that they hold: of whole parameters under zero1, else of their rows. What is sent, and
    so what parameters lie in, is padded to equal parts; those of `even_parts` are every rank's.
    """
    del cluster
    if plan.sharding.strategy == "none" or plan.mesh.data_ranks == 1:
        return trace
    if plan.splits_parameters:
        return shard(trace, plan, rank)
    if plan.sharding.even_parts or not plan.sharding.overlap:
        return reduce_gradients(trace, plan)
    return replicate(trace, plan, rank)
