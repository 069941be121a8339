"""Questions about convolutions, written as torch puts them to cuDNN (aten/src/ATen/native/cudnn/Conv_v8.cpp)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

FLOAT, HALF, BFLOAT16, INT64, DESCRIPTOR = 0, 2, 9, 3, 15
INSTANT, FALLBACK = 0, 2
FORWARD, BACKWARD_FILTER, BACKWARD_DATA = 10, 11, 12
_ATTRIBUTES = {
    # operation: convolution, x, w, y, alpha, beta
    FORWARD: (702, 704, 703, 705, 700, 701),
    BACKWARD_DATA: (708, 710, 709, 711, 706, 707),
    BACKWARD_FILTER: (714, 716, 715, 717, 712, 713),
}


def dense(sizes: Sequence[int], *, channels_last: bool = False) -> list[int]:
    """Strides of a tensor without gaps."""
    order = list(range(len(sizes)))
    if channels_last:
        order = [0, *order[2:], 1]
    strides, step = [0] * len(sizes), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= sizes[axis]
    return strides


def _tensor(name: str, sizes: Sequence[int], dtype: int, *, channels_last: bool) -> list[Any]:
    return [
        17,
        [
            [901, 1, [dtype]],
            [902, INT64, list(sizes)],
            [903, INT64, dense(sizes, channels_last=channels_last)],
            [906, INT64, [ord(name)]],
            [900, INT64, [16]],
            [907, 2, [0]],
        ],
    ]


def convolution(
    operation: int,
    x: Sequence[int],
    w: Sequence[int],
    *,
    padding: int = 0,
    stride: int = 1,
    dilation: int = 1,
    dtype: int = FLOAT,
    channels_last: bool = False,
    mode: int = INSTANT,
) -> dict[str, Any]:
    """One convolution of `x` (N, C, ...) with `w` (K, C / groups, ...); cuDNN reads the groups off the channels."""
    axes = len(x) - 2
    y = [x[0], w[0]]
    y += [(x[i] + 2 * padding - dilation * (w[i] - 1) - 1) // stride + 1 for i in range(2, len(x))]
    conv, *tensors, alpha, beta = _ATTRIBUTES[operation]
    described = [
        1,
        [
            [100, 1, [FLOAT]],
            [101, 7, [1]],
            [106, INT64, [axes]],
            [105, INT64, [padding] * axes],
            [104, INT64, [padding] * axes],
            [102, INT64, [dilation] * axes],
            [103, INT64, [stride] * axes],
        ],
    ]
    graph = [_tensor(n, s, dtype, channels_last=channels_last) for n, s in zip("xwy", (x, w, y), strict=True)]
    parts = [[name, DESCRIPTOR, [place]] for place, name in enumerate(tensors)]
    one, zero = (struct.unpack("<i", struct.pack("<f", number))[0] for number in (1.0, 0.0))
    scales = [[alpha, 4, [one]], [beta, 4, [zero]]]
    graph += [described, [operation, [[conv, DESCRIPTOR, [3]], *parts, *scales]], [15, [[801, DESCRIPTOR, [4]]]]]
    return {"mode": mode, "graph": graph}
