"""Packed sequences in a fake run: how many sequences each step has stays on the host, where C++ code reads it.

    padded (batch, steps, ...)  --_pack_padded_sequence-->  data (rows that are no padding, ...), batch_sizes (steps)
    data, batch_sizes           --_pad_packed_sequence-->   padded, lengths

Both follow torch's aten/src/ATen/native/PackedSequence.cpp. `batch_sizes` and `lengths` are real tensors: recurrent
layers, and the gradient of packing, take them from memory.

>>> data, sizes = pack(torch.zeros(2, 3, 5), [3, 1], batch_first=True)
>>> tuple(data.shape), sizes.tolist()
((4, 5), [2, 1, 1])
>>> padded, lengths = _pad(data, sizes, True, 0.0)
>>> tuple(padded.shape), lengths.tolist()
((2, 3, 5), [3, 1])
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

from dnnmem.profilers.rules.dispatch import Kernels


def pack(padded: Tensor, lengths: list[int], batch_first: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """The rows that are no padding, and how many sequences each step has; `lengths` descend."""
    del batch_first  # the first two dimensions are both gone
    with no_dispatch():
        sizes = torch.tensor([sum(length > step for length in lengths) for step in range(max(lengths))])
    return padded.new_empty((sum(lengths), *padded.shape[2:])), sizes


def numbers(sizes: Tensor) -> list[int]:
    """What a real tensor holds, whatever modes are on."""
    with no_dispatch():
        found: list[int] = sizes.tolist()
    return found


def runs(sizes: list[int]) -> list[tuple[int, int]]:
    """(sequences, steps) of neighbouring steps with as many sequences.

    >>> runs([3, 3, 2])
    [(3, 2), (2, 1)]
    """
    return [(size, len([*steps])) for size, steps in groupby(sizes)]


def _pad(
    data: Tensor,
    batch_sizes: Tensor,
    batch_first: bool,  # noqa: FBT001 - the operator's own signature
    padding_value: float,
    total_length: int = -1,
) -> tuple[Tensor, Tensor]:
    sizes = numbers(batch_sizes)
    steps = max(total_length, len(sizes))
    padded = torch.full((steps, sizes[0], *data.shape[1:]), padding_value, dtype=data.dtype, device=data.device)
    row = step = 0
    for size, count in runs(sizes):
        part = data[row : row + size * count].view(count, size, *data.shape[1:])
        padded[step : step + count].narrow(1, 0, size).copy_(part)
        row, step = row + size * count, step + count
    with no_dispatch():
        lengths = torch.tensor([sum(size > k for size in sizes) for k in range(sizes[0])])
    return padded.transpose(0, 1) if batch_first else padded, lengths


_PAD = "aten::_pad_packed_sequence"
PACKED: Kernels = {(_PAD, "AutogradCPU"): _pad, (_PAD, "CPU"): _pad}
"""What takes the place of the C++ code that makes `lengths` by writing into memory that a FakeTensor lacks."""
