"""Attention as on CUDA: `scaled_dot_product_attention` becomes the operator that the GPU's kernel stands behind.

Follows `scaled_dot_product_attention` in torch's aten/src/ATen/native/transformers/attention.cpp. Autograd then keeps
what CUDA's kernels keep: query, key, value, the output and the logarithm of the sums, never the products of all pairs.

    flash, cuDNN   half precision        efficient   any mask, float32        math   the plain products
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from dnnmem.profilers.rules.backend import Attention, Backend, Setup, choose
from dnnmem.profilers.rules.dispatch import Kernels

_aten = torch.ops.aten


def attention(setup: Setup, chosen: Counter[str]) -> Kernels:
    """Kernels for `dispatch.kernels`; counts in `chosen` how often each back-end was taken."""

    def attend(  # noqa: PLR0917 - the operator's own signature
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = Attention(
            query=query, key=key, value=value, mask=attn_mask, dropout=dropout_p, causal=is_causal, gqa=enable_gqa
        )
        backend = choose(call, setup)
        chosen[backend.name.lower()] += 1
        return _RUN[backend](call, scale)

    return dict.fromkeys([(_NAME, "AutogradCPU"), (_NAME, "CPU")], attend)


_NAME = "aten::scaled_dot_product_attention"


def _flash(call: Attention, scale: float | None) -> Tensor:
    """Widths of a head are padded to a multiple of 8."""
    width = call.query.shape[-1]
    padded = [functional.pad(x, (0, -width % 8)) if width % 8 else x for x in (call.query, call.key, call.value)]
    scale = 1 / math.sqrt(width) if scale is None else scale
    out: Tensor = _aten._scaled_dot_product_flash_attention.default(*padded, call.dropout, call.causal, scale=scale)[0]
    return out[..., :width] if width % 8 else out


def _cudnn(call: Attention, scale: float | None) -> Tensor:
    mask = _as_numbers(call)
    out: Tensor = _aten._scaled_dot_product_cudnn_attention.default(
        call.query, call.key, call.value, mask, call.needs_grad, call.dropout, call.causal, scale=scale
    )[0]
    return out


def _efficient(call: Attention, scale: float | None) -> Tensor:
    mask = _as_numbers(call)
    if mask is not None:
        shape = (*call.query.shape[:-1], call.key.shape[-2])
        mask = _aligned(mask).expand(shape)
    out: Tensor = _aten._scaled_dot_product_efficient_attention.default(
        call.query, call.key, call.value, mask, call.needs_grad, call.dropout, call.causal, scale=scale
    )[0]
    return out


def _math(call: Attention, scale: float | None) -> Tensor:
    out: Tensor = _aten._scaled_dot_product_attention_math.default(
        call.query,
        call.key,
        call.value,
        _as_numbers(call),
        call.dropout,
        call.causal,
        None,
        scale=scale,
        enable_gqa=call.gqa,
    )[0]
    return out


def _as_numbers(call: Attention) -> Tensor | None:
    """A mask of booleans as what is added to the products: `convert_boolean_attn_mask`."""
    mask = call.mask
    if mask is None or mask.dtype is not torch.bool:
        return mask
    nothing = torch.scalar_tensor(-math.inf, dtype=call.query.dtype, device=mask.device)
    return torch.where(mask, torch.scalar_tensor(0.0, dtype=call.query.dtype, device=mask.device), nothing)


def _aligned(mask: Tensor, alignment: int = 8) -> Tensor:
    """The mask in rows that begin at multiples of `alignment` elements: `pad_bias`."""
    if all(stride % alignment == 0 for stride in mask.stride()[:-1]):
        return mask
    length = mask.shape[-1]
    return functional.pad(mask, (0, alignment - length % alignment))[..., :length]


_RUN: dict[Backend, Callable[[Attention, float | None], Tensor]] = {
    Backend.FLASH: _flash,
    Backend.CUDNN: _cudnn,
    Backend.EFFICIENT: _efficient,
    Backend.MATH: _math,
}
