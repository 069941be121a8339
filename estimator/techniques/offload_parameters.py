"""Blocks' parameters that rest in the host's memory, beside the optimizer's states: all of them, or half."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 75
_WHY = "keeps {} parameters on the host, and fetches a block at a time"


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """On the GPU, or on the host where the optimizer is there too, and no other GPU shares the work."""
    rows = [Technique(name="")]
    alone = plan.mesh.world_size == 1 and plan.precision.compute != "fp16_amp" and plan.precision.param is None
    if "offload_parameters" not in scope.fields or not plan.offload.optimizer or scope.blocks < 2 or not alone:
        return rows
    all_of_them = Technique(
        name="offload-parameters", settings=("offload.parameters=true",), words="blocks' parameters on the host",
        why=_WHY.format("blocks'"),
    )  # fmt: skip
    half = Technique(
        name="offload-parameters-half", words="half of the blocks' parameters on the host",
        settings=("offload.parameters=true", f"offload.resident={scope.blocks // 2}"),
        why=_WHY.format("half of the blocks'"),
    )  # fmt: skip
    return [*rows, half, all_of_them]
