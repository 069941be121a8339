"""What CUDA's normalisations keep for backward, in place of what the CPU's keep.

Layer and batch normalisation compute in float32 and keep mean and deviation so; group normalisation keeps them in the
type of its input (torch's aten/src/ATen/native/cuda/layer_norm_kernel.cu, Normalization.cuh, group_norm_kernel.cu).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dnnmem.profilers.fake_kernels import REPLACEMENTS
from dnnmem.profilers.rules.rms_norm import RMS_NORM_REPLACEMENTS

_aten = torch.ops.aten


@contextmanager
def cuda_norms() -> Iterator[None]:
    """Put CUDA's normalisations into a fake run until the context ends."""
    before = dict(REPLACEMENTS)
    REPLACEMENTS.update(_NORMS)
    REPLACEMENTS.update(RMS_NORM_REPLACEMENTS)
    try:
        yield
    finally:
        REPLACEMENTS.clear()
        REPLACEMENTS.update(before)


def _keeping(func: Any, kind: Callable[[torch.dtype], torch.dtype]) -> Callable[..., tuple[Tensor, ...]]:
    """`func` with its statistics in the type that `kind` gives for the type of the input."""

    def run(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        out, mean, deviation = func(*args, **kwargs)
        wanted = kind(args[0].dtype)
        return out, mean.to(wanted), deviation.to(wanted)

    return run


def _accumulated(kind: torch.dtype) -> torch.dtype:
    return torch.float32 if kind in {torch.float16, torch.bfloat16} else kind


def _own(kind: torch.dtype) -> torch.dtype:
    return kind


_NORMS: dict[Any, Callable[..., Any]] = {
    _aten.native_layer_norm.default: _keeping(_aten.native_layer_norm.default, _accumulated),
    _aten.native_batch_norm.default: _keeping(_aten.native_batch_norm.default, _accumulated),
    _aten.native_group_norm.default: _keeping(_aten.native_group_norm.default, _own),
}
