"""Optimizer states that rest in the host's memory, with the update there."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 70


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """On the GPU, or on the host."""
    rows = [Technique(name="")]
    if "offload_optimizer" in scope.fields and plan.optimizer.kernel is None and plan.mesh.pp == 1:
        rows.append(
            Technique(
                name="offload-optimizer", settings=("offload.optimizer=true",), words="optimizer on the host",
                why="keeps optimizer states on the host, and updates there",
            )
        )  # fmt: skip
    return rows
