"""Whether a model computes parts of its forward pass again by itself, as torch.utils.checkpoint does.

A plan's rematerialization around it would keep what the model has given up: none is searched then.

>>> from dnnmem.estimator.trace import Op, Phase
>>> steps = [Op(name="aten.gelu.default", phase=phase) for phase in (Phase.FORWARD, Phase.BACKWARD)]
>>> [computes_again(Trace(ops=(step,), storages={})) for step in steps]
[False, True]
"""

from __future__ import annotations

from dnnmem.estimator.trace import Phase, Trace

_FORWARD_ALONE = frozenset(
    f"aten.{name}"
    for name in (
        "addmm", "gelu", "silu", "relu", "relu_", "_softmax", "native_layer_norm", "_fused_rms_norm",
        "native_group_norm", "native_batch_norm", "cudnn_batch_norm", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    )
)  # fmt: skip
"""Operators that no formula of a derivative calls."""

NOTE = (
    "the model computes parts of its forward pass again by itself (checkpointing): no rematerialization is searched; "
    "switch that off in the model, and it is"
)
"""What a report says of it."""


def computes_again(trace: Trace) -> bool:
    """Whether its backward pass runs such operators."""
    return any(op.phase is Phase.BACKWARD and op.name.rpartition(".")[0] in _FORWARD_ALONE for op in trace.ops)
