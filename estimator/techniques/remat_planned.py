"""What is computed again, planned for the memory that is left: only where nothing else frees activations."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 65
GROUP = "remat"
NAMES = ("remat-planned",)

_SHARES = (0.98, 0.9)
"""Of the memory that is left: what the allocator loses to fragments is not known before."""


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """What the files before have chosen; or what Rotor finds, by two budgets."""
    rows = [Technique(name="")]
    if scope.blocks < 2 or plan.remat.policy != "none" or plan.offload.activations != "none":
        return rows
    return rows + [
        Technique(
            name="remat-planned", words="recompute some blocks, planned by Rotor", planned_share=share,
            why="computes again only what must be for the memory that is left, planned by Rotor",
        )
        for share in _SHARES
    ]  # fmt: skip
