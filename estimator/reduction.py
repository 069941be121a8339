"""Bytes that a CUDA reduction needs besides its output, where thread blocks share the work of one output.

Follows `setReduceConfig` in torch's aten/src/ATen/native/cuda/Reduce.cuh: a block of threads takes one or more
outputs; if there is much input for few outputs, several blocks take one output and meet in a buffer. The buffer has a
place for each thread column of each block, so that the sum of a bias gradient can need more than its input.

>>> gpu = Threads(sm_count=132, per_sm=2048)
>>> buffers(((2048, 3072), (3072, 1)), (0,), gpu=gpu)
(50331648, 96)
>>> buffers(((64, 64), (64, 1)), (0,), gpu=gpu)
()
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_WARP = 32
_MOST_THREADS = 512
_VECTOR = 4
_FEW_VALUES, _MANY_VALUES = 16, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """How many threads a GPU runs at once."""

    sm_count: int
    """Streaming multiprocessors."""
    per_sm: int
    """Resident threads of one."""


def buffers(
    layout: tuple[Sequence[int], Sequence[int]],
    dims: Sequence[int],
    *,
    gpu: Threads,
    accumulator_bytes: int = 4,
) -> tuple[int, ...]:
    """Bytes of the buffer and of the semaphores, or nothing where one thread block does an output.

    Args: `layout`: sizes and strides of the input; `dims`: what is reduced, all if empty; `accumulator_bytes`: of what
    is summed up (4 for sums of half precision too).
    """
    reduced, kept = _coalesced(layout, dims)
    inputs, outputs = math.prod(n for n, _ in reduced), math.prod(n for n, _ in kept)
    if inputs <= 1 or outputs == 0:
        return ()
    on_fastest = not kept or reduced[0][1] < kept[0][1]
    width, height = (inputs, outputs) if on_fastest else (outputs, inputs)
    vector = 1
    if on_fastest and reduced[0][1] == 1 and width > 128 and len(reduced) == 1:
        width //= _VECTOR
    elif not on_fastest and kept[0][1] == 1:
        vector = _output_vector(reduced, kept)
        width //= vector
    across, down = _block(width, height, _MOST_THREADS // vector)
    return _global(
        inputs, outputs, across, down, vector, gpu=gpu, on_fastest=on_fastest, accumulator_bytes=accumulator_bytes
    )


def _global(
    inputs: int,
    outputs: int,
    across: int,
    down: int,
    vector: int,
    *,
    gpu: Threads,
    on_fastest: bool,
    accumulator_bytes: int,
) -> tuple[int, ...]:
    """What blocks of `across` x `down` threads need to share outputs."""
    step_input, step_output = (across, 1) if on_fastest else (1, across * vector)
    values = -(-inputs // step_input)
    if values < min(down * _FEW_VALUES, _MANY_VALUES):
        return ()
    step_input *= down
    values = -(-inputs // step_input)
    grid = -(-outputs // step_output)
    target = gpu.sm_count * (gpu.per_sm // (across * down))
    if values < _MANY_VALUES or grid > target:
        return ()
    blocks = max(min(-(-target // grid), -(-values // _FEW_VALUES)), -(-values // _MANY_VALUES))
    if blocks <= 1:
        return ()
    nbytes = accumulator_bytes * outputs * blocks
    if not on_fastest:
        nbytes *= across * vector
    return nbytes, 4 * grid


def _block(width: int, height: int, most: int) -> tuple[int, int]:
    """Threads of a block across and down: powers of two, at most `most` of them: `set_block_dimension`."""
    wide, high = (_floor_power(min(n, most)) for n in (width, height))
    down = min(high, most // min(wide, _WARP))
    return min(wide, most // down), down


def _floor_power(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


def _output_vector(reduced: Sequence[tuple[int, int]], kept: Sequence[tuple[int, int]]) -> int:
    """How many neighbouring outputs one thread takes: 4, 2 or 1, as sizes and strides divide."""
    vector = _VECTOR
    for n in (kept[0][0], *(stride for _, stride in (*reduced, *kept[1:]))):
        while n % vector:
            vector //= 2
    return vector


def _coalesced(
    layout: tuple[Sequence[int], Sequence[int]], dims: Sequence[int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(size, stride) of reduced and of kept dimensions, fastest first, neighbours joined: a TensorIterator's."""
    sizes, strides = layout
    chosen = {d % len(sizes) for d in dims} if dims else set(range(len(sizes)))
    result = []
    for wanted in (True, False):
        some = [
            (n, stride)
            for d, (n, stride) in enumerate(zip(sizes, strides, strict=True))
            if n != 1 and (d in chosen) is wanted
        ]
        some.sort(key=lambda pair: pair[1])
        joined: list[tuple[int, int]] = []
        for n, stride in some:
            if joined and joined[-1][0] * joined[-1][1] == stride:
                joined[-1] = joined[-1][0] * n, joined[-1][1]
            else:
                joined.append((n, stride))
        result.append(joined)
    return result[0], result[1]
