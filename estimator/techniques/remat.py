"""What is computed again in the backward pass instead of kept."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 30


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Nothing; or whole blocks, all or some; or all but products and attention."""
    del plan
    rows = [Technique(name="")]
    if scope.blocks < 2:
        return rows
    rows.append(
        Technique(
            name="remat-selective", settings=("remat.policy=selective",), words="recompute all but matrix products",
            why="keeps every second matrix product and attention of a block, and computes the rest again",
        )
    )  # fmt: skip
    for every in (4, 3, 2):
        if scope.blocks >= 2 * every:
            rows.append(
                Technique(
                    name="remat-every", settings=("remat.policy=every", f"remat.every={every}"),
                    words=f"recompute every {every}{'nd' if every == 2 else 'rd' if every == 3 else 'th'} block",
                    why=f"keeps of one block in {every} its input only",
                )
            )  # fmt: skip
    rows.append(
        Technique(
            name="remat-full", settings=("remat.policy=full",), words="recompute every block",
            why="keeps of each block its input only",
        )
    )  # fmt: skip
    return rows
