"""Which of CUDA's kernels computes a convolution, and the calls of cuDNN that this takes.

Follows torch's aten/src/ATen/native/Convolution.cpp (the choice) and native/cudnn/ConvShared.cpp (the calls). A
transposed convolution is the gradient of a plain one by its input, and its gradient by the input a plain one:

                 forward    gradient by input    gradient by weight
    plain        FORWARD    DATA                 FILTER
    transposed   DATA       FORWARD              FILTER, input and gradient in each other's place
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from dnnmem.profilers.rules.gpu import Gpu

_LAST = (torch.channels_last, torch.channels_last_3d)


class Kernel(Enum):
    """Whose kernel it is."""

    CUDNN = 1
    """cuDNN's."""
    DEPTHWISE = 2
    """torch's own for one filter a channel."""
    SLOW = 3
    """torch's own by way of a product of matrices: what cuDNN refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One call of `aten::convolution` or its backward; one over sequences is one over images of height 1."""

    x: Tensor
    """The input, (N, C, H, W) or (N, C, D, H, W)."""
    weight: Tensor
    """(out, in / groups, ...); of a transposed one (in, out / groups, ...)."""
    stride: tuple[int, ...]
    """One for each axis, as all of the following."""
    padding: tuple[int, ...]
    """At both ends."""
    dilation: tuple[int, ...]
    """Distance of the weight's elements."""
    transposed: bool
    """`conv_transpose2d` and the like."""
    output_padding: tuple[int, ...]
    """Of a transposed one."""
    groups: int
    """Groups of channels, each of which sees its own input only."""


def convolution_of(x: Tensor, weight: Tensor, arguments: Sequence[Any]) -> Convolution:
    """A call by its input, its weight, and the arguments from `stride` to `groups`."""
    axes, images = weight.dim() - 2, weight.dim() == 3
    stride, padding, dilation, outer = (
        (*((first,) if images else ()), *(given if len(given) == axes else tuple(given) * axes))
        for first, given in zip((1, 0, 1, 0), (*arguments[:3], arguments[4]), strict=True)
    )
    return Convolution(
        x=as_images(x.contiguous() if images else x),
        weight=as_images(weight),
        stride=stride,
        padding=padding,
        dilation=dilation,
        transposed=bool(arguments[3]),
        output_padding=outer,
        groups=int(arguments[5]),
    )


def as_images(tensor: Tensor) -> Tensor:
    """A tensor over sequences as one over images of height 1; others as they are."""
    return tensor.unsqueeze(2) if tensor.dim() == 3 else tensor


def layout(first: Tensor, second: Tensor) -> torch.memory_format:
    """In which cuDNN gets these two: `cudnn_conv_suggest_memory_format`."""
    if torch.float64 not in (first.dtype, second.dtype):
        for tensor in (first, second):
            suggested = suggest_memory_format(tensor)
            if suggested in _LAST and tensor.dim() == second.dim():
                return suggested
    return torch.contiguous_format


def kernel_of(it: Convolution, gpu: Gpu) -> Kernel:
    """The kernel that computes `it`, and its gradients: `_select_conv_backend`."""
    if not torch.backends.cudnn.enabled:
        takes = prefers = False
    else:
        half = torch.bfloat16 in (it.x.dtype, it.weight.dtype)
        is_big = any(p >= s for p, s in zip(it.output_padding, it.stride, strict=True))
        takes, prefers = not is_big and not (half and gpu.setup.capability < (8, 0)), _prefers_cudnn(it, gpu)
    channels = it.x.shape[1]
    if not it.transposed and it.groups == channels > 1 and it.weight.shape[0] % channels == 0:
        return Kernel.CUDNN if prefers else Kernel.DEPTHWISE
    return Kernel.CUDNN if takes else Kernel.SLOW


def _prefers_cudnn(it: Convolution, gpu: Gpu) -> bool:
    """For one filter a channel: `use_cudnn_depthwise`."""
    if layout(it.x, it.weight) in _LAST:
        return True
    halves = it.x.dtype is torch.float16 and it.weight.dtype is torch.float16
    if gpu.setup.capability < (7, 0) or not halves or it.x.dim() != 4 or any(d != 1 for d in it.dilation):
        return False
    _, channels, height, _ = it.x.shape
    if (it.stride[0] != it.stride[1] and height != 1) or channels < 32:
        return False
    return (height == 1 and it.stride[1] == 1) or _is_faster(it)


def _is_faster(it: Convolution) -> bool:
    """A matter of measurements, in half precision: `check_cudnn_depthwise_workload_with_filter`."""
    n, channels, _, width = it.x.shape
    step, (rows, columns) = it.stride[1], it.weight.shape[2:]
    if rows != columns or columns not in {1, 3, 5} or width < 7 or step > 2:
        return False
    if step == 1:
        return True
    if columns == 1:
        return width <= 28 if n == 1 else n <= 16 and channels >= 128 and width <= 7
    return n == 1 or channels >= 512 or (channels >= 256 and width >= 28)
