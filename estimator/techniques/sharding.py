"""Who holds what: data parallelism over the GPUs that a plan uses.

No replicas where gradients do not reach all, and nothing where some are sparse.
"""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 10
NAMES = ("ddp", "zero1", "zero2", "zero3", "hsdp")

_OVER = "sharding.strategy={}"
_APART, _NEAR = 8, 2
"""How much larger each group of nodes is than the one before: those between them differ by little; and among thousands
of GPUs, where that is much."""
_MANY = 1024
"""GPUs from which groups are looked at that are so near."""


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """One replica alone, or every strategy over each number of them; over nodes, sharding within some of them too."""
    shared = plan.mesh.world_size
    found: list[Technique] = []
    for gpus in scope.gpus:
        if gpus % shared or (scope.sparse and gpus > shared):
            continue
        found += _over(gpus // shared, plan, scope) if gpus > shared else [Technique(name="")]
    return found


def _over(ranks: int, plan: Plan, scope: Scope) -> list[Technique]:
    whole, per_node = f"mesh.dp_shard={ranks}", max(scope.cluster.gpus_per_node // (plan.mesh.tp * plan.mesh.cp), 1)
    over = f"{ranks} GPUs" if plan.mesh.world_size == 1 else f"{ranks} ranks"
    rows = [
        Technique(
            name="ddp", settings=(f"mesh.dp_replicate={ranks}", _OVER.format("ddp")), words=f"DDP over {over}",
            why=f"lets {over} share the batch, each with the whole model",
        ),
        Technique(
            name="zero1", settings=(whole, _OVER.format("zero1")), words=f"ZeRO-1 over {over}",
            why=f"splits optimizer states and the update over {over}",
        ),
        Technique(
            name="zero2", settings=(whole, _OVER.format("zero2")), words=f"ZeRO-2 over {over}",
            why=f"splits states and gradients over {over} and gathers parameters once a step",
        ),
        Technique(
            name="zero3", settings=(whole, _OVER.format("zero3")), words=f"FSDP2 over {over}",
            why=f"splits parameters, gradients and states over {over}",
        ),
    ]  # fmt: skip
    if scope.unreached:
        rows = rows[2:]
    inside = per_node
    while 1 < inside < ranks:
        if ranks % inside == 0:
            where = f"nodes of {scope.cluster.gpus_per_node} GPUs"
            if inside > per_node:
                where = f"groups of {inside // per_node} nodes"
            rows += _within(inside, ranks // inside, where)
        inside *= _APART if scope.cluster.gpus < _MANY else _NEAR
    return rows


def _within(inside: int, replicas: int, where: str) -> list[Technique]:
    """HSDP over groups of `inside` ranks, which gathers parameters for each pass, or once."""
    mesh, words = (f"mesh.dp_shard={inside}", f"mesh.dp_replicate={replicas}"), f"HSDP, {inside} GPUs x {replicas}"
    why = f"splits the model within {where} and sends only gradients between them"
    return [
        Technique(name="hsdp", settings=(*mesh, _OVER.format("zero3")), words=words, why=why),
        Technique(
            name="hsdp", settings=(*mesh, _OVER.format("zero2")), words=f"{words}, gathered once",
            why=f"{why}, and gathers parameters once for both passes",
        ),
    ]  # fmt: skip
