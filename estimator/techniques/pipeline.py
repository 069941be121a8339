"""Stages of a pipeline: how many ranks each hold a run of the model's blocks."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 2
NAMES = ("pp",)

_MOST = 64
"""Stages; more of them wait for each other longer than they save."""


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """One stage, or as many as GPUs and blocks allow."""
    del plan
    rows = [Technique(name="")]
    if "pipeline" not in scope.fields:
        return rows
    most = min(scope.blocks, _MOST, max(scope.gpus))
    return rows + [_row(pp) for pp in range(2, most + 1) if any(gpus % pp == 0 for gpus in scope.gpus)]


def _row(pp: int) -> Technique:
    return Technique(
        name="pp", settings=(f"mesh.pp={pp}",), words=f"pipeline of {pp} stages",
        why=f"deals blocks to {pp} stages, which send each other a micro-batch's activations and nothing else",
    )  # fmt: skip
