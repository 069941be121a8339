"""What autocast on CUDA does to the inputs of each operator; torch's aten/src/ATen/autocast_mode.h, by operator names.

    LOWER      products, convolutions, attention     inputs in the lower type
    FLOAT32    norms, losses, powers                 inputs in float32
    RESULT     softmax, sums                         the operator is asked for a float32 result
    WIDEST     cat, addcmul                          the widest type among the inputs
    PROMOTE    everything else                       runs in what it gets; types promote

>>> policy_of("aten.addmm.default").name, policy_of("aten.relu_.default").name, policy_of("aten.sum.dim_IntList").name
('LOWER', 'PROMOTE', 'RESULT')
"""

from __future__ import annotations

from enum import Enum
from functools import cache


class Policy(Enum):
    """What happens to floating inputs."""

    LOWER = "lower"
    FLOAT32 = "float32"
    RESULT = "result"
    WIDEST = "widest"
    PROMOTE = "promote"


_NAMES: dict[Policy, frozenset[str]] = {
    Policy.LOWER: frozenset({
        "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "addr", "matmul", "linear", "einsum", "chain_matmul",
        "convolution", "cudnn_convolution", "conv1d", "conv2d", "conv3d", "_convolution", "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell", "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention",
    }),
    Policy.FLOAT32: frozenset({
        "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
        "sinh", "tan", "pow", "softplus", "native_layer_norm", "native_group_norm", "_fused_rms_norm", "norm",
        "nll_loss_forward", "nll_loss2d_forward", "mse_loss", "smooth_l1_loss", "huber_loss", "dist",
        "_pdist_forward", "_cdist_forward", "renorm", "logsumexp", "multilabel_margin_loss_forward",
        "soft_margin_loss", "multi_margin_loss", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
        "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_trilinear3d",
        "upsample_bicubic2d", "_upsample_bicubic2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d",
    }),
    Policy.RESULT: frozenset({
        "prod", "_softmax", "_log_softmax", "cumprod", "cumsum", "linalg_vector_norm", "sum",
    }),
    Policy.WIDEST: frozenset({
        "addcdiv", "addcmul", "atan2", "cross", "linalg_cross", "dot", "vdot", "grid_sampler_2d", "grid_sampler_3d",
        "index_put", "scatter_add", "cat", "stack", "index_copy",
    }),
}  # fmt: skip

STATISTICS = frozenset({
    "native_layer_norm", "native_group_norm", "_fused_rms_norm", "native_batch_norm", "cudnn_batch_norm",
    "_native_batch_norm_legit", "_batch_norm_with_update", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention",
})  # fmt: skip
"""Operators whose outputs after the first are statistics: in float32, whatever goes in."""

BATCH_NORMS = frozenset({
    "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update",
    "native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward",
})  # fmt: skip
"""Their result has the type of the image, while weights and statistics are in float32."""


def base(name: str) -> str:
    """An operator's name alone: `addmm` of `aten.addmm.default`."""
    return name.partition(".")[2].partition(".")[0]


@cache
def policy_of(name: str) -> Policy:
    """Of the operator called `name`."""
    short = base(name)
    return next((policy for policy, names in _NAMES.items() if short in names), Policy.PROMOTE)
