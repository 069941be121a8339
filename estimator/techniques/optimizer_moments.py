"""Moments in 16 bits, and updates as gradients come: they change training, and are searched only by name."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 55
NAMES = ("bf16_moments", "fp16_moments", "in_backward")

_ROWS = (
    Technique(
        name="bf16_moments", settings=("optimizer.state=bfloat16",), words="moments in bf16",
        why="keeps the optimizer's moments in 2 bytes an element", alters="moments rounded to 8 bits",
    ),
    Technique(
        name="fp16_moments", settings=("optimizer.state=float16",), words="moments in fp16",
        why="keeps the optimizer's moments in 2 bytes an element", alters="moments rounded to 11 bits",
    ),
    Technique(
        name="in_backward", settings=("optimizer.in_backward=true",), words="updates in the backward pass",
        why="updates each parameter as its gradient comes, so that gradients never live together",
        alters="gradients that cannot be clipped",
    ),
)  # fmt: skip


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """As recorded, or those that are named and that the plan can have."""
    named = scope.allow | scope.only
    rows = [row for row in _ROWS if "optimizer" in scope.fields and {row.name, "optimizer_moments"} & named]
    alone = plan.mesh.world_size == 1 and plan.batch.accumulation == 1
    return [Technique(name=""), *(row for row in rows if alone or row.name != "in_backward")]
