"""Temporaries of Fourier transforms: cuFFT's work area, and copies that its plans ask for.

    c2c, r2c    output, +copy +work -work -copy        the copy: batch dimensions that cannot be seen as one
    c2r         +clone, output, +work -work, -clone    cuFFT overwrites what it transforms to real numbers

`_exec_fft` in aten/src/ATen/native/cuda/SpectralOps.cpp. How large a work area is, cuFFT says only to a process that
has a GPU: the model is that of the virtual GPU (`virtual_gpu/fft.c`), and is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.needs import Find, Needs

_MOST_DIMS = 3
"""That one plan transforms."""
_LARGEST_PRIME = 127


def _complex(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    """Three dimensions at a time, those of the smallest strides first; a second output is there if it takes several."""
    x: Tensor = args[0]
    left = sorted(args[1], key=x.stride, reverse=True)
    groups, again = list[tuple[int, ...]](), (_nbytes(out),) if len(left) > _MOST_DIMS else ()
    while left:
        left, dims = left[:-_MOST_DIMS], left[-_MOST_DIMS:]
        groups.append((*_collapsed(x, dims), _work(x, dims, [x.shape[d] for d in dims])))
    return Needs(beside=again, during=groups)


def _to_complex(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    x, dims = args[0], list(args[1])
    return Needs(during=[(*_collapsed(x, dims), _work(x, dims, [x.shape[d] for d in dims], half=True))])


def _to_real(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    x, dims = args[0], list(args[1])
    clone = torch.empty(x.shape, dtype=x.dtype, device="meta")
    work = _work(x, dims, [out.shape[d] for d in dims], half=True)
    return Needs(before=(_nbytes(x),), during=[(*_collapsed(clone, dims), work)])


def _collapsed(x: Tensor, dims: Sequence[int]) -> tuple[int, ...]:
    """A copy of `x` where the dimensions beside `dims` are not one by their strides."""
    beside = sorted((d for d in range(x.dim()) if d not in dims and x.shape[d] != 1), key=x.stride, reverse=True)
    is_one = all(x.stride(a) == x.stride(b) * x.shape[b] for a, b in pairwise(beside))
    return () if is_one else (_nbytes(x),)


def _work(x: Tensor, dims: Sequence[int], lengths: Sequence[int], *, half: bool = False) -> int:
    """One complex copy of the data; `half`: of real data, of whose last length the second half is known."""
    batch = x.numel() // max(prod(x.shape[d] for d in dims), 1)
    numbers = prod(_numbers(n, half=half and i == len(lengths) - 1) for i, n in enumerate(lengths))
    return batch * numbers * x.element_size() * (1 if x.is_complex() else 2)


def _numbers(length: int, *, half: bool) -> int:
    """Complex numbers that stand for one dimension; Bluestein's algorithm pads it to a power of two."""
    rest = length
    for prime in range(2, _LARGEST_PRIME + 1):
        while rest % prime == 0:
            rest //= prime
    if rest <= 1:
        return length // 2 + 1 if half else length
    return 1 << (2 * length - 2).bit_length()


def _nbytes(x: Tensor) -> int:
    return int(x.numel()) * x.element_size()


_aten = torch.ops.aten
TEMPORARIES: dict[Any, Find] = {
    _aten._fft_c2c.default: _complex,
    _aten._fft_r2c.default: _to_complex,
    _aten._fft_c2r.default: _to_real,
}
"""What each operator needs inside, called with the GPU, its arguments and its outputs."""
