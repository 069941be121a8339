"""Temporaries inside CUDA's attention kernels, by the shapes of query (B, H, T, D) and key (B, K, S, D).

Sizes follow torch's flash_api.cpp, mem_eff_attention's kernel_backward.h and cudnn-frontend; all were compared with
torch's own allocations. Most are accumulators in float32 for what several thread blocks add up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.needs import Needs

_aten = torch.ops.aten
_FLOAT = 4


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _shape(query: Tensor, key: Tensor) -> tuple[int, int, int, int, int]:
    b, h, t, d = query.shape
    return b, h, t, d, key.shape[-2]


def flash_forward(gpu: Gpu, args: Any, kwargs: Any, _out: Any) -> Needs:
    """Few heads leave the GPU idle: then keys are split, and the parts' outputs kept (`num_splits_heuristic`)."""
    b, h, t, d, s = _shape(args[0], args[1])
    dropout = args[3] if len(args) > 3 else kwargs.get("dropout_p", 0.0)
    if dropout:
        return Needs()
    blocks = -(-s // (256 if d <= 64 else 128 if d <= 128 else 64))
    splits = _splits(b * h * -(-t // 64), 2 * gpu.threads.sm_count, blocks)
    rows = splits * b * h * t * _FLOAT
    return Needs(during=[(rows, rows * _rounded(d))]) if splits > 1 else Needs()


def _splits(busy: int, places: int, blocks: int) -> int:
    """Fewest parts whose waves of thread blocks fill at least 85 % of what the best number fills."""
    if busy >= 0.8 * places:
        return 1
    filled: dict[int, float] = {}
    for splits in range(1, min(128, places, blocks) + 1):
        if splits == 1 or -(-blocks // splits) != -(-blocks // (splits - 1)):
            waves = busy * splits / places
            filled[splits] = waves / -(-waves // 1)
    best = max(filled.values())
    return min(splits for splits, share in filled.items() if share >= 0.85 * best)


def _rounded(d: int) -> int:
    return _up(d, 32 if d <= 128 else 64)


def flash_backward(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """Row sums and the gradient of the query."""
    query, key = args[1], args[2]
    b, h, t, d, _ = _shape(query, key)
    rows = b * h * _up(t, 128)
    made = rows * _FLOAT, rows * _rounded(d) * _FLOAT
    return Needs(before=_in_order(args[0]) + _in_order(args[4]), during=[(*made, *_expanded(query, key))])


def _in_order(tensor: Tensor) -> tuple[int, ...]:
    """A copy of a gradient or output, unless it lies as (B, T, H, D)."""
    return () if tensor.transpose(1, 2).is_contiguous() else (tensor.numel() * tensor.element_size(),)


def _expanded(query: Tensor, key: Tensor) -> tuple[int, ...]:
    """Gradients of keys and values for each head of the query, where several share a key."""
    b, h, _, d, s = _shape(query, key)
    return () if key.shape[1] == h else (b * s * h * d * query.element_size(),) * 2


def cudnn_backward(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """One workspace for row sums and the gradient of the query."""
    b, h, t, d, _ = _shape(args[1], args[2])
    return Needs(during=[(b * h * t * (d + 1) * _FLOAT,)])


def efficient_forward(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    """Half precision with wide heads adds up its output in float32; the random state is made first."""
    query, value = args[0], args[2]
    wide = value.shape[-1] > 128 and query.element_size() == 2
    return Needs(order=(2, 3, 0, 1), during=[(out[0].numel() * _FLOAT,)] if wide else ())


def efficient_backward(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """Row sums of output times gradient (for float32 by way of the product), and the gradients' accumulators."""
    query, key = args[1], args[2]
    b, h, t, d, s = _shape(query, key)
    half = query.element_size() == 2
    rows = b * h * t * _FLOAT
    products = [] if half else [(b * h * t * args[3].shape[-1] * _FLOAT, rows, rows)]
    block = 64 if not half or d <= 64 else 128
    columns = 128 if half and 64 < d <= 128 else _up(d, 64)
    accumulators = -(-t // block) * (block * columns * _FLOAT + 16)
    if half and d > 128:
        splits = max(1, min(-(-s // 64), 200 // (b * h)))
        accumulators += splits * 64 * 256 * _FLOAT * 2
    during = [*products, (rows, b * h * accumulators)]
    return Needs(before=_in_order(args[0]), beside=_expanded(query, key), during=during)


TEMPORARIES = {
    _aten._scaled_dot_product_flash_attention.default: flash_forward,
    _aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
    _aten._scaled_dot_product_cudnn_attention_backward.default: cudnn_backward,
    _aten._scaled_dot_product_efficient_attention.default: efficient_forward,
    _aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
}
"""What each operator needs inside, called with the GPU, its arguments and its outputs."""
