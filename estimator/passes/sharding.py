"""Data parallelism: who holds parameters, gradients and optimizer states, and what ranks send each other.

    strategy      parameters   gradients   states      sent each step (P bytes of parameters, N ranks)
    ddp           whole        whole       whole       all_reduce P
    zero1         whole        whole       1 / N       reduce_scatter P, all_gather P
    zero2         whole        1 / N       1 / N       reduce_scatter P, all_gather P
    zero3         1 / N        1 / N       1 / N       all_gather 2 P, reduce_scatter P (gathered once if kept)

After Rajbhandari et al. 2020 (ZeRO), Li et al. 2020 (DDP) and PyTorch's FSDP2. With `dp_replicate` above 1, sharded
strategies also all-reduce their parts over the replicas (HSDP).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.passes.buckets import reduce_gradients
from dnnmem.estimator.passes.fsdp import shard

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.trace import Trace


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """One rank's step under `plan.sharding` among `plan.mesh.data_ranks`; unchanged for one rank."""
    del cluster
    if plan.sharding.strategy == "none" or plan.mesh.data_ranks == 1:
        return trace
    if plan.sharding.strategy == "zero3":
        return shard(trace, plan)
    return reduce_gradients(trace, plan)
