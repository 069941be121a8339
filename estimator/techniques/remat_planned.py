"""What is computed again, planned for the memory that is left: only where nothing else frees activations."""

from __future__ import annotations

from dnnmem.estimator.plan import Compression, Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 65
GROUP = "remat"
NAMES = ("remat-planned",)

_SHARE = 0.93
"""Of the memory that is left: what the allocator loses to fragments, mostly less than the rest, is known only then."""


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """What the files before have chosen; or what Rotor finds, where ranks have sequences of their own.

    Those that share them have parts of all that is kept already, and are many.
    """
    rows = [Technique(name="")]
    untouched = plan.offload.activations == "none" and plan.compression == Compression()
    whole = plan.mesh.pp == 1 and plan.mesh.cp == 1 and not scope.computes_again
    if scope.blocks > 1 and plan.remat.policy == "none" and untouched and whole:
        rows.append(
            Technique(
                name="remat-planned", words="recompute some blocks, planned by Rotor", planned_share=_SHARE,
                why="computes again only what must be for the memory that is left, planned by Rotor",
            )
        )  # fmt: skip
    return rows
