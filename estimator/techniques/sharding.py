"""Who holds what: data parallelism over the GPUs that a plan uses."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 10
NAMES = ("ddp", "zero1", "zero2", "zero3", "hsdp")

_OVER = "sharding.strategy={}"


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """One GPU alone, or every strategy over each number of GPUs; over nodes, sharding within each of them too."""
    del plan
    found: list[Technique] = []
    for gpus in scope.gpus:
        found += _over(gpus, scope) if gpus > 1 else [Technique(name="")]
    return found


def _over(gpus: int, scope: Scope) -> list[Technique]:
    whole, per_node = f"mesh.dp_shard={gpus}", scope.cluster.gpus_per_node
    rows = [
        Technique(
            name="ddp", settings=(f"mesh.dp_replicate={gpus}", _OVER.format("ddp")), words=f"DDP over {gpus} GPUs",
            why=f"lets {gpus} GPUs share the batch, each with the whole model",
        ),
        Technique(
            name="zero1", settings=(whole, _OVER.format("zero1")), words=f"ZeRO-1 over {gpus} GPUs",
            why=f"splits optimizer states and the update over {gpus} GPUs",
        ),
        Technique(
            name="zero2", settings=(whole, _OVER.format("zero2")), words=f"ZeRO-2 over {gpus} GPUs",
            why=f"splits states and gradients over {gpus} GPUs and gathers parameters once a step",
        ),
        Technique(
            name="zero3", settings=(whole, _OVER.format("zero3")), words=f"FSDP2 over {gpus} GPUs",
            why=f"splits parameters, gradients and states over {gpus} GPUs",
        ),
    ]  # fmt: skip
    if gpus > per_node and not gpus % per_node:
        inside = (f"mesh.dp_shard={per_node}", f"mesh.dp_replicate={gpus // per_node}", _OVER.format("zero3"))
        rows.append(
            Technique(
                name="hsdp", settings=inside, words=f"HSDP, {per_node} GPUs x {gpus // per_node}",
                why=f"splits the model within nodes of {per_node} GPUs and sends only gradients between nodes",
            )
        )  # fmt: skip
    return rows
