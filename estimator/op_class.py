"""Which kind of kernel an operator runs, told from its name and the shapes it touches.

The time model prices a kind, never an operator: one achieved share of a peak, one rule for its traffic.

    arithmetic   gemm, attention_forward, attention_backward, conv, grouped_conv, depthwise_conv
    traffic      stream      reads and writes whole blocks of one element type in order: copies, sums of two, foreach
                 eager       the same with broadcasting, a cast, a permutation: kernels that compute each address
                 norm, group_norm, batch_norm, softmax, reduction, sort, index     several passes over rows, or rows
                             picked by an index
    other        lane (communication and host copies, priced elsewhere), none (no kernel)

>>> kind_of("aten.addmm.default").name, kind_of("aten.relu_.default").name, kind_of("mylib.scan.default").name
('GEMM', 'STREAM', 'STREAM')
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache


class OpClass(IntEnum):
    """Kinds of kernels."""

    NONE = 0
    GEMM = 1
    ATTENTION_FORWARD = 2
    ATTENTION_BACKWARD = 3
    CONV = 4
    GROUPED_CONV = 5
    DEPTHWISE_CONV = 6
    STREAM = 7
    EAGER = 8
    NORM = 9
    SOFTMAX = 10
    REDUCTION = 11
    INDEX = 12
    BATCH_NORM = 13
    LANE = 14
    GROUP_NORM = 15
    SORT = 16

    @property
    def label(self) -> str:
        """Name in tables and in `specs/time_model.toml`."""
        return self.name.lower()


ARITHMETIC = frozenset(
    {
        OpClass.GEMM, OpClass.ATTENTION_FORWARD, OpClass.ATTENTION_BACKWARD,
        OpClass.CONV, OpClass.GROUPED_CONV, OpClass.DEPTHWISE_CONV,
    }
)  # fmt: skip
"""Kinds whose flops count."""

CONVOLUTIONS = frozenset({OpClass.CONV, OpClass.GROUPED_CONV, OpClass.DEPTHWISE_CONV})
"""Kinds that cuDNN runs."""
# fmt: off
_NAMES: dict[OpClass, frozenset[str]] = {
    OpClass.NONE: frozenset({
        "begin", "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_",
        "set_", "detach_", "record_stream", "_unsafe_view", "lift_fresh", "_reshape_alias",
    }),
    OpClass.GEMM: frozenset({
        "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "addmv_", "dot", "vdot", "addmm_", "baddbmm_",
        "_scaled_mm", "_grouped_mm", "_addmm_activation", "_int_mm", "linear", "linear_backward", "_foreach_mm",
    }),
    OpClass.NORM: frozenset({
        "native_layer_norm", "native_layer_norm_backward", "_fused_rms_norm", "_fused_rms_norm_backward",
    }),
    OpClass.GROUP_NORM: frozenset({"native_group_norm", "native_group_norm_backward"}),
    OpClass.BATCH_NORM: frozenset({
        "native_batch_norm", "native_batch_norm_backward", "_native_batch_norm_legit", "cudnn_batch_norm",
        "cudnn_batch_norm_backward", "batch_norm_backward", "_batch_norm_with_update", "miopen_batch_norm",
        "miopen_batch_norm_backward",
    }),
    OpClass.SOFTMAX: frozenset({
        "_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data", "logsumexp",
        "_masked_softmax", "_safe_softmax",
    }),
    OpClass.REDUCTION: frozenset({
        "sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "var", "var_mean", "std", "std_mean", "prod",
        "any", "all", "norm", "linalg_vector_norm", "nansum", "cumsum", "cumprod", "topk", "median",
        "_adaptive_avg_pool2d", "count_nonzero",
    }),
    OpClass.SORT: frozenset({"sort", "argsort", "msort"}),
    OpClass.INDEX: frozenset({
        "embedding", "embedding_dense_backward", "index", "index_put", "index_put_", "_index_put_impl_", "index_add",
        "index_add_", "index_select", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "_unsafe_index",
        "nll_loss_forward", "nll_loss2d_forward", "_embedding_bag", "_embedding_bag_dense_backward", "masked_select",
    }),
}
# fmt: on


@cache
def kind_of(name: str) -> OpClass:
    """Kind of the operator called `name`; one that nobody knows streams its bytes.

    A convolution is `CONV` here: its groups are in its shapes.
    """
    namespace, _, rest = name.partition(".")
    base = rest.partition(".")[0] if namespace != "dnnmem" else rest
    if "attention" in base:
        return OpClass.ATTENTION_BACKWARD if "backward" in base else OpClass.ATTENTION_FORWARD
    if "convolution" in base or base in ("conv2d", "conv1d", "conv3d", "_slow_conv2d_forward"):
        return OpClass.CONV
    return next((kind for kind, names in _NAMES.items() if base in names), OpClass.STREAM)


@cache
def is_backward(name: str) -> bool:
    """True for an operator that computes gradients by itself."""
    return "_backward" in name
