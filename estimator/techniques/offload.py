"""What rests in the host's memory."""

from __future__ import annotations

from dnnmem.estimator.plan import Compression, Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 60


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Nothing; activations of blocks that are whole on a rank, and neither computed again nor made smaller."""
    rows = [Technique(name="")]
    if "offload" not in scope.fields or plan.mesh.world_size > plan.mesh.data_ranks:
        return rows
    activations = Technique(
        name="offload-activations", settings=("offload.activations=all",), words="activations to the host",
        why="keeps what blocks save for the backward pass in the host's memory",
    )  # fmt: skip
    if plan.remat.policy == "none" and plan.compression == Compression() and scope.blocks > 1:
        rows.append(activations)
    return rows
