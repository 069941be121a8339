"""How what is kept for the backward pass is made smaller."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 35
FILE = "compression"
"""What `--allow` calls all of them."""
NAMES = ("masks", "compress-8bit", "compress-4bit", "compress-2bit", "project-linear")

_SHARE = 0.25


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Nothing; or, where that is allowed, masks, which lose nothing but help few models; codes; projections."""
    rows = [Technique(name="")]
    asked = scope.allow | scope.only
    if (
        FILE not in scope.fields
        or plan.mesh.world_size > plan.mesh.data_ranks
        or plan.remat.policy not in ("none", "full", "every", "segments")
    ):
        return rows
    if asked & {FILE, "masks"}:
        rows.append(_MASKS)
    rows += [_codes(bits) for bits in (8, 4, 2)]
    return [*rows, _PROJECTED] if plan.remat.policy == "none" else rows


_MASKS = Technique(
    name="masks", settings=("compression.masks=true",), words="masks of a bit",
    why="keeps a bit of what ReLUs and dropouts save, and of max-pooling the places in its windows",
)  # fmt: skip
_PROJECTED = Technique(
    name="project-linear", settings=(f"compression.projection={_SHARE}",), words="inputs of linear layers projected",
    why=f"keeps of what linear layers read random sums, {100 * _SHARE:.0f} % of the rows",
    alters="random projections: gradients of linear layers are right on average",
)  # fmt: skip


def _codes(bits: int) -> Technique:
    words = f"activations in {bits} bits"
    return Technique(
        name=f"compress-{bits}bit", settings=(f"compression.bits={bits}", "compression.masks=true"), words=words,
        why=f"keeps what is saved for the backward pass as codes of {bits} bits",
        alters=f"{words}: gradients are noisy",
    )  # fmt: skip
