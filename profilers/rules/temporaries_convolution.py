"""Temporaries of convolutions on CUDA: copies in the layout that the kernel wants, and the workspaces of cuDNN.

Where each is made follows torch's native/cudnn/ConvShared.cpp: an output comes before the copies that its kernel reads,
but for the gradient of the weight, and each workspace lives for one call. A gradient by output is first brought into
the input's layout, for both calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from dnnmem.profilers.rules.convolution import Convolution, Kernel, as_images, convolution_of, kernel_of, layout
from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.needs import Find, Needs
from dnnmem.profilers.rules.temporaries_kernels import nbytes, reduced
from dnnmem.profilers.virtual_gpu.cudnn_convolution import BFLOAT16, DOUBLE, FLOAT, HALF, Call, Operand, Operation

_aten = torch.ops.aten
_TYPES = {torch.float32: FLOAT, torch.float64: DOUBLE, torch.float16: HALF, torch.bfloat16: BFLOAT16}
_PLAIN = torch.contiguous_format
_FLOAT = 4

Ask = Callable[[Call], int]
"""The bytes of the workspace that cuDNN takes for a call."""


def temporaries(ask: Ask) -> dict[Any, Find]:
    """What each operator needs inside, if `ask` knows cuDNN's workspaces."""

    def forward(gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
        it = convolution_of(args[0], args[1], args[3:9])
        if kernel_of(it, gpu) is not Kernel.CUDNN:
            return Needs(before=_copies(_PLAIN, args[0]))
        copied, it = _laid_out(it, args[0])
        run = _data if it.transposed else _forward
        return Needs(before=copied, outputs=[run(ask, it, as_images(out), it.x)])

    def backward(gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
        gradient, x, mask = args[0], args[1], args[-1]
        sums = [d for d in range(gradient.dim()) if d != 1]
        bias = [Needs(during=[reduced(gpu, gradient, sums, _FLOAT)])] if mask[2] else []
        it = convolution_of(x, args[2], args[4:10])
        if kernel_of(it, gpu) is not Kernel.CUDNN:
            order = (1, 0, 2) if all(mask[:2]) else ()
            return Needs(before=_copies(_PLAIN, gradient, x), order=order, outputs=[*[Needs()] * sum(mask[:2]), *bias])
        before, it = _laid_out(it, x) if mask[1] or x.dim() == 3 else ((), it)
        gradient, wanted = as_images(gradient), suggest_memory_format(it.x)
        if it.transposed or suggest_memory_format(gradient) != wanted:
            before += _copies(wanted, gradient)
            gradient = gradient.contiguous(memory_format=wanted)
        by_input = [(_forward if it.transposed else _data)(ask, it, it.x, gradient)] if mask[0] else []
        by_weight = [_filter(ask, it, gradient)] if mask[1] else []
        return Needs(before=before, outputs=[*by_input, *by_weight, *bias])

    return {_aten.convolution.default: forward, _aten.convolution_backward.default: backward}


def _laid_out(it: Convolution, given: Tensor) -> tuple[tuple[int, ...], Convolution]:
    """The copy that brings the input, `given` so, into cuDNN's layout; and the convolution of that."""
    wanted = layout(it.x, it.weight)
    return _copies(wanted, as_images(given)), replace(it, x=it.x.contiguous(memory_format=wanted))


def _forward(ask: Ask, it: Convolution, y: Tensor, x: Tensor) -> Needs:
    """The output, and then what makes it."""
    wanted = layout(x, it.weight)
    copied = _copies(wanted, it.weight, x)
    call = _call(it, Operation.FORWARD, wanted, x=_read(x, wanted), w=_read(it.weight, wanted), y=_made(y))
    return Needs(during=[(*copied, ask(call))])


def _data(ask: Ask, it: Convolution, x: Tensor, y: Tensor) -> Needs:
    """The gradient of the input, and then what makes it."""
    wanted = layout(y, it.weight)
    copied = _copies(wanted, it.weight, y)
    call = _call(it, Operation.DATA, wanted, x=_made(x), w=_read(it.weight, wanted), y=_read(y, wanted))
    return Needs(during=[(*copied, ask(call))])


def _filter(ask: Ask, it: Convolution, gradient: Tensor) -> Needs:
    """Copies, then the gradient of the weight, then the workspace."""
    x, y = (gradient, it.x) if it.transposed else (it.x, gradient)
    wanted = layout(x, y)
    call = _call(it, Operation.FILTER, wanted, x=_read(x, wanted), w=_made(it.weight), y=_read(y, wanted))
    return Needs(before=_copies(wanted, y, x), during=[(ask(call),)])


def _call(
    it: Convolution, operation: Operation, wanted: torch.memory_format, *, x: Operand, w: Operand, y: Operand
) -> Call:
    return Call(
        operation=operation,
        x=x,
        w=w,
        y=y,
        padding=it.padding,
        stride=it.stride,
        dilation=it.dilation,
        dtype=_TYPES[it.x.dtype],
        channels_last=wanted is not _PLAIN,
    )


def _made(tensor: Tensor) -> Operand:
    """One that the allocator has just made."""
    return Operand(sizes=tuple(tensor.shape))


def _read(tensor: Tensor, wanted: torch.memory_format) -> Operand:
    """One that is read where it lies, if its layout allows: it may begin anywhere in its block."""
    place = int(tensor.storage_offset()) * tensor.element_size() if tensor.is_contiguous(memory_format=wanted) else 0
    return Operand(sizes=tuple(tensor.shape), alignment=min(place & -place or 32, 32))


def _copies(wanted: torch.memory_format, *tensors: Tensor) -> tuple[int, ...]:
    return tuple(nbytes(x) for x in tensors if not x.is_contiguous(memory_format=wanted))
