"""A convolution as a question to cuDNN, as torch puts it, and which of the engines that it offers torch takes.

For processes without the stub of cuDNN, which writes down what torch asks itself (dnn_graph.c): the texts are the same.
Follows torch's aten/src/ATen/native/cudnn/Conv_v8.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from dnnmem.profilers.virtual_gpu.cudnn_query import Engine

INSTANT, FALLBACK = 0, 2
"""Modes of the heuristics: torch asks for the first, and where none of its engines works, for the second."""
FLOAT, DOUBLE, HALF, BFLOAT16 = 0, 1, 2, 9
"""Types of elements, as cuDNN counts them."""
_INT64, _DESCRIPTOR = 3, 15
_TENSOR, _CONVOLUTION, _GRAPH = 17, 1, 15
_TENSOR_CORE, _DOWN_CONVERT, _NONDETERMINISTIC = 1 << 0, 1 << 1, 1 << 4
"""Numerical notes."""


class Operation(IntEnum):
    """Which product of three tensors; numbers as in cuDNN."""

    FORWARD = 10
    """The output of input and weight."""
    FILTER = 11
    """The gradient of the weight."""
    DATA = 12
    """The gradient of the input."""


_NAMES = {
    # input, weight, output, convolution, alpha, beta
    Operation.FORWARD: (704, 703, 705, 702, 700, 701),
    Operation.DATA: (710, 709, 711, 708, 706, 707),
    Operation.FILTER: (716, 715, 717, 714, 712, 713),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A tensor without gaps."""

    sizes: tuple[int, ...]
    """(N, C, H, W); of a weight (out, in / groups, H, W)."""
    alignment: int = 32
    """Largest power of two up to 32 that divides its address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of cuDNN."""

    operation: Operation
    """Which of the three is wanted of the other two."""
    x: Operand
    """Input, or its gradient."""
    w: Operand
    """Weight, or its gradient."""
    y: Operand
    """Output, or its gradient."""
    padding: tuple[int, ...]
    """At both ends of each axis."""
    stride: tuple[int, ...]
    """Along each axis."""
    dilation: tuple[int, ...]
    """Along each axis."""
    dtype: int
    """Type of the elements."""
    channels_last: bool
    """True for NHWC, false for NCHW."""


def question(it: Call, mode: int = INSTANT) -> dict[str, Any]:
    """What is asked (the form: cudnn_query.py)."""
    is_double = it.dtype == DOUBLE
    conv = [
        [100, 1, [DOUBLE if is_double else FLOAT]],
        [101, 7, [1]],
        [106, _INT64, [len(it.stride)]],
        [105, _INT64, list(it.padding)],
        [104, _INT64, list(it.padding)],
        [102, _INT64, list(it.dilation)],
        [103, _INT64, list(it.stride)],
    ]
    *parts, alpha, beta = _NAMES[it.operation]
    named = [[name, _DESCRIPTOR, [place]] for place, name in enumerate(parts)]
    one = struct.unpack("<q" if is_double else "<i", struct.pack("<d" if is_double else "<f", 1.0))[0]
    kind = 5 if is_double else 4
    return {
        "mode": mode,
        "graph": [
            *(_operand(it, name, tensor) for name, tensor in (("x", it.x), ("w", it.w), ("y", it.y))),
            [_CONVOLUTION, conv],
            [int(it.operation), [*named, [alpha, kind, [one]], [beta, kind, [0]]]],
            [_GRAPH, [[801, _DESCRIPTOR, [4]]]],
        ],
    }


def _operand(it: Call, name: str, tensor: Operand) -> list[Any]:
    return [
        _TENSOR,
        [
            [901, 1, [it.dtype]],
            [902, _INT64, list(tensor.sizes)],
            [903, _INT64, dense(tensor.sizes, channels_last=it.channels_last)],
            [906, _INT64, [ord(name)]],
            [900, _INT64, [tensor.alignment]],
        ],
    ]


def dense(sizes: Sequence[int], *, channels_last: bool) -> list[int]:
    """Strides without gaps.

    >>> dense((2, 3, 4, 5), channels_last=True), dense((2, 3, 4, 5), channels_last=False)
    ([60, 1, 15, 3], [60, 20, 5, 1])
    """
    order = list(range(len(sizes)))
    strides, step = order[:], 1
    for axis in reversed([0, *order[2:], 1] if channels_last else order):
        strides[axis] = step
        step *= sizes[axis]
    return strides


def takes(engine: Engine, dtype: int, *, tf32: bool, deterministic: bool) -> bool:
    """True if torch would run this engine: a plan can be made of it, and its numbers are such as the user allows."""
    unwanted = _NONDETERMINISTIC if deterministic else 0
    if dtype == FLOAT:
        unwanted |= _DOWN_CONVERT | (0 if tf32 else _TENSOR_CORE)
    return engine.workspace_bytes >= 0 and not engine.notes & unwanted
