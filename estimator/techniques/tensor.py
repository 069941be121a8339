"""Ranks of a node that share each matrix: tensor parallelism as torchtitan has it, where it divides the model."""

from __future__ import annotations

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.precision import AMP, recorded_in
from dnnmem.estimator.passes.tensor_layout import check_divides, find_layout
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique
from dnnmem.estimator.trace import Trace

ORDER = 4
NAMES = ("tp",)

_SEQUENCE = ("tensor.sequence_parallel=true", "tensor.keep_gathered=true")


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Whole matrices, or parts over each number of ranks that divides them, in models of equal blocks."""
    most = max(scope.gpus) // plan.mesh.pp if scope.blocks and not scope.sparse else 0
    rows = [_row(tp, settings) for tp, settings in scope.tensor if tp <= most and "tensor" in scope.fields]
    return [Technique(name=""), *rows]


def _row(tp: int, settings: tuple[str, ...]) -> Technique:
    return Technique(
        name="tp", settings=(f"mesh.tp={tp}", *settings), words=f"tensor parallel over {tp}",
        why=f"splits each matrix and what it makes over {tp} GPUs of a node, so that a rank keeps and gathers less",
    )  # fmt: skip


def degrees(trace: Trace, cluster: Cluster) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Ranks within a node that can share the matrices of a step, and the settings that go with each.

    What runs between matrices is split along the sequence where that divides, and the loss along the vocabulary.
    """
    if recorded_in(trace) in AMP:
        return ()
    layout = find_layout(trace, gather_logits=False)
    length = trace.batch.get("seq_len")
    found = []
    for tp in range(2, min(cluster.gpus_per_node, cluster.gpus) + 1):
        if cluster.gpus_per_node % tp or not layout.row:
            continue
        try:
            check_divides(trace, layout, tp)
        except UnsupportedError:
            continue
        along = _SEQUENCE if isinstance(length, int) and length % tp == 0 else ()
        found.append((tp, (*along, *(("tensor.loss_parallel=true",) if layout.head else ()))))
    return tuple(found)
