"""What is computed again in the backward pass instead of kept."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_pipeline import SPLITS
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 30
FILE = "remat"
"""What `--allow` calls all of them."""
NAMES = ("remat-selective", "remat-cheap", "remat-every", "remat-full")

_EVERY = {4: "th", 3: "rd", 2: "nd"}


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Nothing; or whole blocks, all or some; or all but products and attention. Stages of a pipeline do it alike.

    Those that make gradients of weights later keep what these need.
    `remat-cheap` is offered where it is asked for: the planners of `remat-planned` find what it finds, and more.
    """
    rows = [Technique(name="")]
    if scope.blocks < 2 or scope.computes_again or (plan.mesh.pp > 1 and plan.pipeline.schedule in SPLITS):
        return rows
    rows.append(
        Technique(
            name="remat-selective", settings=("remat.policy=selective",), words="recompute all but matrix products",
            why="keeps every second matrix product and attention of a block, and computes the rest again",
        )
    )  # fmt: skip
    if (scope.allow | scope.only) & {FILE, "remat-cheap"}:
        rows.append(_CHEAP)
    rows += [_every(n, ending) for n, ending in _EVERY.items() if scope.blocks >= 2 * n and plan.mesh.pp == 1]
    rows.append(
        Technique(
            name="remat-full", settings=("remat.policy=full",), words="recompute every block",
            why="keeps of each block its input only",
        )
    )  # fmt: skip
    return rows


_CHEAP = Technique(
    name="remat-cheap", settings=("remat.policy=ops", "remat.keep=products"), words="recompute norms and activations",
    why="keeps products, convolutions and attention of a block, and computes again what is quickly done",
)  # fmt: skip


def _every(n: int, ending: str) -> Technique:
    return Technique(
        name="remat-every", settings=("remat.policy=every", f"remat.every={n}"),
        words=f"recompute every {n}{ending} block", why=f"keeps of one block in {n} its input only",
    )  # fmt: skip
