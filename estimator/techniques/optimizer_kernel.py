"""The same update by another kernel."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 40


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """As recorded, or one kernel."""
    del plan
    rows = [Technique(name="")]
    if "optimizer" in scope.fields:
        rows.append(
            Technique(
                name="fused", settings=("optimizer.kernel=fused",), words="fused update",
                why="updates all parameters in one kernel, without temporaries",
            )
        )  # fmt: skip
    return rows
