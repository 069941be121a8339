"""A cross entropy by chunks, where its logits are a large part of a step: the numbers that training computes stay."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 27
NAMES = ("chunked-loss", "fused-loss")
CHUNKS = 8
"""Pieces: the logits of one are an eighth, and products of an eighth of the rows are still large."""
LEAST_SHARE = 0.05
"""Of the step's peak: where the log-probabilities are less, nothing is gained."""


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """The loss as it is; or without its logits, or where a rank lets go of the head's matrix, without the rest."""
    rows = [Technique(name="")]
    shared = plan.mesh.world_size > plan.mesh.data_ranks
    if scope.logits_share < LEAST_SHARE or shared or plan.precision.compute == "fp16_amp":
        return rows
    chunks = f"loss.chunks={CHUNKS}"
    if plan.splits_parameters:
        rows.append(
            Technique(
                name="chunked-loss", settings=(chunks,), words=f"loss in {CHUNKS} chunks",
                why="makes log-probabilities of a part of the tokens at a time",
            )
        )  # fmt: skip
    else:
        rows.append(
            Technique(
                name="fused-loss", settings=(chunks, "loss.fused=true"), words=f"head and loss in {CHUNKS} chunks",
                why="makes logits of a part of the tokens at a time, never all",
            )
        )  # fmt: skip
    return rows
