"""Whether a step makes gradients that hold some rows only, as those of `nn.Embedding(sparse=True)` do.

NCCL sums no such gradients, and FSDP2 and DTensor take none: ranks that are to meet cannot.
"""

from __future__ import annotations

from dnnmem.estimator.trace import Kind, Phase, Trace

_MADE = "aten._sparse_coo_tensor_with_dims_and_tensors"
WHY = "gradients of an embedding are sparse, which ranks cannot send each other"
HINT = "Embedding(sparse=False), or one GPU"


def has_sparse_gradients(trace: Trace) -> bool:
    """True if the backward pass makes a sparse tensor in a module that has a parameter without another gradient."""
    made = {op.module for op in trace.ops if op.phase is Phase.BACKWARD and op.name.startswith(_MADE)}
    if not made:
        return False
    of_kind = {
        kind: {(s.module, s.name.split(".")[0]) for s in trace.storages.values() if s.kind is kind}
        for kind in (Kind.PARAM, Kind.GRAD)
    }
    return any(module in made for module, _ in of_kind[Kind.PARAM] - of_kind[Kind.GRAD])
