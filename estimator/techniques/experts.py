"""Ranks that hold some experts of every layer each: expert parallelism, where FSDP2 shares the rest."""

from __future__ import annotations

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.expert_layers import find_layers
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique
from dnnmem.estimator.trace import Trace

ORDER = 12
NAMES = ("ep",)

_DEGREES = (2, 4, 8, 16, 32, 64)
"""What is tried: beyond, the fewest rows leave for the most ranks."""


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Experts of all layers on each rank, or parts of them over each number of its FSDP2 ranks."""
    rows = [Technique(name="")]
    if "experts" in scope.fields and plan.splits_parameters and plan.mesh.tp == 1:
        rows += [_row(ep) for ep in scope.experts if plan.mesh.dp_shard % ep == 0]
    return rows


def _row(ep: int) -> Technique:
    return Technique(
        name="ep", settings=(f"mesh.ep={ep}",), words=f"expert parallel over {ep}",
        why=f"splits each layer's experts over {ep} GPUs, to which tokens are sent, so that fewer experts are gathered",
    )  # fmt: skip


def degrees(trace: Trace, cluster: Cluster) -> tuple[int, ...]:
    """Ranks that can share the experts of every layer of a step; none where there are no experts."""
    try:
        counts = {layer.experts for layer in find_layers(trace, 1)}
    except UnsupportedError:
        return ()
    return tuple(ep for ep in _DEGREES if ep <= cluster.gpus and all(count % ep == 0 for count in counts))
