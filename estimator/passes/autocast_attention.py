"""Attention in half precision: which kernel runs, what it keeps beside its output and what it needs inside."""

from __future__ import annotations

from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.trace import Op, Trace


def attention(draft: Draft, k: int, op: Op, trace: Trace) -> None:
    """Make op `k`, an attention in float32, the one that runs in half precision."""
