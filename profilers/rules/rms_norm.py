"""Root-mean-square normalisation as on CUDA: one kernel forward and one backward, where torch has them.

Follows `rms_norm_symint` in torch's aten/src/ATen/native/layer_norm.cpp: input and weight of one type go to
`_fused_rms_norm`, which keeps a float32 deviation for each row. On the CPU that operator falls apart into elementwise
ones before any mode sees it, so it is called below autograd, and its gradient is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dnnmem.profilers.rules.dispatch import Kernels

_aten = torch.ops.aten


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            out, deviation = _aten._fused_rms_norm.default(x, shape, weight, eps)
        ctx.save_for_backward(x, weight, deviation)
        ctx.shape = shape
        kept: Tensor = out
        return kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight, deviation = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        with torch._C._AutoDispatchBelowAutograd():
            of_x, of_weight = _aten._fused_rms_norm_backward.default(
                gradients[0], x, ctx.shape, deviation, weight, wanted
            )
        return of_x, None, of_weight, None


def _rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    if weight is not None and weight.dtype is not x.dtype:
        plain: Tensor = _aten.rms_norm.default.decompose(x, shape, weight, eps)
        return plain
    out: Tensor = _RmsNorm.apply(x, shape, weight, eps)
    return out


def _forward(
    x: Tensor, shape: list[int], _weight: Tensor | None = None, _eps: float | None = None
) -> tuple[Tensor, ...]:
    rows = [*x.shape[: x.dim() - len(shape)], *(1 for _ in shape)]
    kind = torch.float32 if x.dtype in {torch.float16, torch.bfloat16} else x.dtype
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(rows, dtype=kind)


def _backward(
    _gradient: Tensor, x: Tensor, _shape: list[int], _rows: Tensor, weight: Tensor | None, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    of_weight = torch.empty_like(weight) if weight is not None and mask[1] else None
    return torch.empty_like(x, memory_format=torch.contiguous_format) if mask[0] else None, of_weight


_EXISTS = hasattr(_aten, "_fused_rms_norm") and hasattr(_aten, "_fused_rms_norm_backward")

RMS_NORM: Kernels = (
    dict.fromkeys([("aten::rms_norm", "AutogradCPU"), ("aten::rms_norm", "CPU")], _rms_norm) if _EXISTS else {}
)
"""Kernels for `dispatch.kernels`."""

RMS_NORM_REPLACEMENTS: dict[Any, Callable[..., Any]] = (
    {_aten._fused_rms_norm.default: _forward, _aten._fused_rms_norm_backward.default: _backward} if _EXISTS else {}
)
"""What the two operators give in a fake run."""
