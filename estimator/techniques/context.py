"""Ranks that share every sequence: context parallelism, where sequences are long enough to be worth sharing."""

from __future__ import annotations

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.context_sizes import check_length
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique
from dnnmem.estimator.trace import Trace

ORDER = 6
NAMES = ("cp",)

LEAST_TOKENS = 8192
"""Of a sequence on each rank: shorter parts send more than they compute."""
_FEWEST = 1024
"""The same among thousands of GPUs, of which each would take samples of its own else, or whole matrices."""
_MANY = 1024
"""GPUs from which so few tokens are looked at."""
_METHODS = {"all_gather": "gathers", "ring": "passes on"}


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Whole sequences, or parts over each number of ranks that divides them, by both ways that torch has."""
    rows = [Technique(name="")]
    most = max(scope.gpus) // plan.mesh.world_size
    if "context" in scope.fields and not scope.sparse:
        rows += [_row(cp, method, did) for cp in scope.context if cp <= most for method, did in _METHODS.items()]
    return rows


def _row(cp: int, method: str, did: str) -> Technique:
    return Technique(
        name="cp", settings=(f"mesh.cp={cp}", f"context.method={method}"),
        words=f"context parallel over {cp} ({method.replace('_', '-')})",
        why=f"splits each sequence over {cp} GPUs, which {did} keys and values, so that a rank keeps fewer activations",
    )  # fmt: skip


def degrees(trace: Trace, cluster: Cluster) -> tuple[int, ...]:
    """Ranks that can share the sequences of a step."""
    length = trace.batch.get("seq_len")
    if not isinstance(length, int) or not any(is_attention(op.name) for op in trace.ops):
        return ()
    least = _FEWEST if cluster.gpus >= _MANY else LEAST_TOKENS
    return tuple(
        cp for cp in (2, 4, 8, 16, 32) if cp <= cluster.gpus and _divides(length, cp) and length // cp >= least
    )


def _divides(length: int, cp: int) -> bool:
    try:
        for method in _METHODS:
            check_length(length, cp, method)
    except UnsupportedError:
        return False
    return True
