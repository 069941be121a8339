"""Linear layers in 8 bits, where the GPU multiplies them: they change rounding, and are searched only by name."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 27
NAMES = ("float8",)

_FLOAT8 = Technique(
    name="float8", settings=("precision.linear=float8",), words="linear layers in float8",
    why="multiplies the linear layers of blocks in 8 bits (torchao)", alters="products rounded to 8 bits",
)  # fmt: skip


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """As they are, or in 8 bits where that is named."""
    named = {*NAMES, "precision_linear"} & (scope.allow | scope.only)
    device = scope.cluster.device
    able = device.vendor == "nvidia" and "float8" in device.flops_per_s and plan.mesh.tp == 1
    return [Technique(name=""), *([_FLOAT8] if named and able and "precision" in scope.fields else [])]
