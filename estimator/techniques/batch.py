"""In how many pieces a rank takes its part of the global batch."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 20
NAMES = ("accumulation",)


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Micro-batches that divide a rank's samples, the largest first; none where the ranks do not divide the batch."""
    each, rest = divmod(scope.global_batch, plan.mesh.data_ranks)
    if rest or not each:
        return []
    return [_row(micro, each // micro) for micro in sorted(scope.micro_batches, reverse=True) if not each % micro]


def _row(micro: int, times: int) -> Technique:
    settings = (f"batch.micro_batch={micro}", f"batch.accumulation={times}")
    if times == 1:
        return Technique(name="", settings=settings, words=f"micro-batch {micro}")
    return Technique(
        name="accumulation", settings=settings, words=f"micro-batch {micro} x {times}",
        why=f"takes {times} micro-batches of {micro}, whose activations never live together",
    )  # fmt: skip
