"""How long each op takes on one GPU: the longer of its arithmetic and its traffic, and a kernel's start.

    seconds = max(flops / (share * rate), bytes / (share * bandwidth)) + kernels * launch

Two things bend the line. A matrix product is cut into tiles that the multiprocessors take in waves, so a last wave that
is nearly empty costs as much as a full one; and rows that are no multiple of 16 bytes are loaded in smaller pieces.
What lies in the level-2 cache comes faster than memory gives it.

>>> from dnnmem.estimator.devices import find_device
>>> from dnnmem.estimator.time_model import load
>>> from dnnmem.estimator.trace import Kind, Op, Storage, Trace
>>> from dnnmem.estimator.work import work_of
>>> y = Storage(id=0, nbytes=2 * 8192**2, kind=Kind.TEMP, shape=(8192, 8192), dtype="bfloat16")
>>> op = Op(name="aten.mm.default", writes=(0,), flops=2 * 8192**3, moved_bytes=6 * 8192**2)
>>> device = find_device("a100-sxm-80gb")
>>> [round(1e3 * float(s)) for s in op_seconds(work_of(Trace(ops=(op,), storages={0: y})), device, load(device))]
[5]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.device import Device
from dnnmem.estimator.measured_rates import with_curves
from dnnmem.estimator.op_class import ARITHMETIC, OpClass
from dnnmem.estimator.time_model import TimeModel
from dnnmem.estimator.work import DTYPES, Floats, Work

# Tiles of cuBLAS and CUTLASS: rows, columns, rate against the largest.
_TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.94), (128, 64, 0.78), (64, 64, 0.6))
_SPLITS = (1, 2, 4, 8)
"""Pieces a product's sums may be cut into."""
_LEAST_SPLIT = 256
"""Shortest piece of a sum."""
_GROUP_WIDTHS = (4, 8, 16, 32, 64)
"""Channels of a group that cuDNN has kernels for; their groups come by eights."""
_LONG_ROW_PASSES = 2.0
"""Traffic of a softmax over rows too long for shared memory: three readings and a writing for one of each."""
_WARP_ROW = 1024
"""Longest row that a warp holds; longer ones take a block of threads each."""
_GRADIENT_UNITS = (6, 3)
"""Tensors that a softmax's gradient reads and writes, as it makes a product in memory first; a log-softmax's."""
_LONE_WARP_SECONDS = 1.1e-6
"""Two loads from memory after one another: what a kernel of one warp needs for 32 labels of a cross entropy."""
_GROUP_PASSES = (1 / 2, 2 / 3)
"""Share of a group norm's least bytes that its sums read once more, forward and backward."""
_GROUP_ROWS = (1.0, 1 / 3)
"""Time of one of their rows against a softmax's, which has three rounds: means and squares merged, plain sums."""
_BLOCK_SORT = 4096
"""Longest row that is sorted in shared memory."""
_DIGITS = (6, 8)
"""Bits of a digit when rows are sorted in memory: many rows, one row."""
_TILE = 64
"""Narrowest tile of a convolution's kernel."""
Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


def op_seconds(work: Work, device: Device, model: TimeModel) -> Floats:
    """Seconds on the GPU of each op; measured ones win. NaN for communication and host copies, priced elsewhere."""
    seconds = _traffic_seconds(work, device, model)
    rate = peak_rates(work, device) * _power(device, model)
    for kind, price in (
        (OpClass.GEMM, _product_seconds),
        (OpClass.CONV, _convolution_seconds),
        (OpClass.GROUPED_CONV, _convolution_seconds),
        (OpClass.ATTENTION_FORWARD, _attention_seconds),
        (OpClass.ATTENTION_BACKWARD, _attention_seconds),
    ):
        rows = np.flatnonzero((work.kind == kind) & (work.flops > 0))
        if rows.size:
            seconds[rows] = np.maximum(seconds[rows], price(work, rows, rate[rows], device, model))
    turned = work.turned & (work.kind != OpClass.GROUPED_CONV)
    seconds[turned] += 2 * work.bytes[turned] / (model.eager * device.memory_bytes_per_s)  # in order and back
    seconds = with_curves(work, model, seconds) + work.fresh_bytes * model.fault_seconds_per_byte
    seconds += work.kernels * model.launch_seconds
    seconds[work.kind == OpClass.NONE] = 0.0
    seconds[work.kind == OpClass.LANE] = np.nan
    return np.where(np.isnan(work.measured), seconds, work.measured)


def host_seconds(work: Work, model: TimeModel) -> Floats:
    """Seconds the host needs to issue each op; 0 for what is not dispatched."""
    return work.host_ops * model.host_seconds


def by_class(work: Work, seconds: Floats) -> dict[str, float]:
    """Sum of `seconds` by kind of kernel, the longest first; kinds that take none are left out."""
    sums = np.bincount(work.kind, np.nan_to_num(seconds), len(OpClass))
    order = sorted(OpClass, key=lambda kind: -sums[kind])
    return {kind.label: float(sums[kind]) for kind in order if sums[kind]}


def peak_rates(work: Work, device: Device) -> Floats:
    """Peak flops per second of each op's arithmetic."""
    slowest = device.flops_per_s["float32"]
    peaks = np.array([device.flops_per_s.get(dtype, slowest) for dtype in DTYPES])
    return peaks[work.dtype]


def _power(device: Device, model: TimeModel) -> float:
    """Share of the rate that the card's power limit leaves."""
    if not model.reference_watts:
        return 1.0
    peak = device.flops_per_s.get("float16", model.reference_flops_per_s)
    needed = model.reference_watts * peak / model.reference_flops_per_s
    return float(min(1.0, device.power_watts / needed) ** model.power_exponent)


def _traffic_seconds(work: Work, device: Device, model: TimeModel) -> Floats:
    shares = np.full(len(OpClass), model.stream)
    for kind in OpClass:
        if kind not in ARITHMETIC or kind is OpClass.DEPTHWISE_CONV:
            shares[kind] = getattr(model, kind.label, model.stream)
    softmax = work.kind == OpClass.SOFTMAX
    long = softmax & ~work.backward & (work.n * work.item_bytes > device.smem_per_sm_bytes / 2)
    seconds = work.bytes * np.where(long, _LONG_ROW_PASSES, 1.0) / (shares[work.kind] * device.memory_bytes_per_s)
    gradient = softmax & work.backward
    seconds[gradient] = _softmax_gradient_seconds(work, gradient, device, model)
    seconds[(work.kind == OpClass.NORM) & work.backward] *= model.norm / model.norm_backward
    eager = work.kind == OpClass.EAGER
    seconds[eager] = _addressed_seconds(work, device, model)[eager]
    index = work.kind == OpClass.INDEX
    picked = np.minimum(work.m, work.bytes / work.item_bytes)
    seconds[index] += picked[index] * model.index_seconds / device.sm_count
    seconds[work.kind == OpClass.SORT] = _sort_seconds(work, device, model)
    seconds[work.bytes < device.l2_bytes / 2] /= model.l2_boost
    labels = np.where(np.isin(work.kind, (OpClass.INDEX, OpClass.STREAM, OpClass.EAGER)), work.k, 0.0)
    seconds += np.ceil(labels / 32) * _LONE_WARP_SECONDS / (1 + work.backward)
    rows = np.where(softmax & (work.n > _WARP_ROW), work.m / np.maximum(work.n, 1.0), 0.0)
    seconds = np.maximum(seconds, rows * model.row_seconds / device.sm_count)
    seconds[work.kind == OpClass.GROUP_NORM] += _moments_seconds(work, device, model)
    return np.asarray(seconds, dtype=np.float64)


def _softmax_gradient_seconds(work: Work, own: Mask, device: Device, model: TimeModel) -> Floats:
    """Seconds of a softmax's gradient: once more over rows that do not fit in shared memory."""
    log = np.array(["log" in name for name in work.names])[own]
    long = work.n[own] * work.item_bytes[own] > device.smem_per_sm_bytes / 2
    units = np.where(log, _GRADIENT_UNITS[1], _GRADIENT_UNITS[0]) + long
    return np.asarray(work.bytes[own] / 3 * units / (model.stream * device.memory_bytes_per_s))


def _moments_seconds(work: Work, device: Device, model: TimeModel) -> Floats:
    """Seconds of the sums that a group norm begins with: a block of threads for each row, where few leave some idle."""
    own = work.kind == OpClass.GROUP_NORM
    back = work.backward[own].astype(np.intp)
    rows = work.m[own] / np.maximum(work.n[own], 1.0)
    busy = np.minimum(rows / device.sm_count, 1.0)
    moved = work.bytes[own] * np.take(_GROUP_PASSES, back) / (model.stream * device.memory_bytes_per_s * busy)
    each = model.row_seconds * np.take(_GROUP_ROWS, back)
    return np.asarray(np.maximum(moved, np.ceil(rows / device.sm_count) * each))


def _sort_seconds(work: Work, device: Device, model: TimeModel) -> Floats:
    """Seconds of sorts of rows: copies and the places, then keys with places at once, or digit by digit in memory."""
    own = work.kind == OpClass.SORT
    m, n = work.m[own], work.n[own]
    key = np.maximum((work.bytes[own] / np.maximum(m, 1.0) - 8) / 2, 1.0)
    pair = key + 8
    digits = np.ceil(8 * key / np.where(m > n, *_DIGITS))
    sorting = np.where(n > _BLOCK_SORT, digits * (key + 2 * pair), 2 * pair)
    return np.asarray(m * (2 * key + 8 + sorting) / (model.stream * device.memory_bytes_per_s))


def _addressed_seconds(work: Work, device: Device, model: TimeModel) -> Floats:
    """Seconds of kernels that compute each element's address: so much an element, beside the bytes.

    `eager` is their share for a four-byte element read and written; two-byte elements reach less.
    """
    per_element = 8 * (1 / model.eager - 1 / model.stream)
    elements = np.minimum(work.m, work.bytes)
    return (work.bytes / model.stream + elements * per_element) / device.memory_bytes_per_s


def _product_seconds(work: Work, rows: Rows, rate: Floats, device: Device, model: TimeModel) -> Floats:
    """Seconds of the best tiling of `batch` products (m, k) @ (k, n)."""
    m, n, k, batch = work.m[rows], work.n[rows], work.k[rows], work.batch[rows]
    per_unit = rate * model.gemm * _aligned(work, rows) / device.sm_count
    best = np.full(m.shape, np.inf)
    for height, width, relative in _TILES:
        tiles = np.ceil(m / height) * np.ceil(n / width) * batch
        for pieces in _SPLITS:
            waves = np.ceil(tiles * pieces / device.sm_count)
            seconds = waves * (2 * height * width / relative) * (k / pieces) / per_unit
            if pieces > 1:
                partial = 8.0 * pieces * batch * m * n / (model.stream * device.memory_bytes_per_s)
                seconds = np.where(k / pieces < _LEAST_SPLIT, np.inf, seconds + partial + model.launch_seconds)
            best = np.minimum(best, seconds)
    return best


def _aligned(work: Work, rows: Rows) -> Floats:
    """Share of the rate that rows of odd lengths leave: loads of 16 bytes need a multiple of 8 two-byte elements."""
    whole = np.where(work.item_bytes[rows] >= 4, 1, 8)
    return np.sqrt(np.minimum(work.align[rows] / whole, 1.0))


def _convolution_seconds(work: Work, rows: Rows, rate: Floats, _device: Device, model: TimeModel) -> Floats:
    n, groups = work.n[rows], work.batch[rows]
    grouped = np.where(np.isin(n, _GROUP_WIDTHS) & (groups % 8 == 0), model.grouped_conv, model.odd_grouped_conv)
    grouped = np.where(work.turned[rows], model.turned_grouped_conv * np.minimum(n / _TILE, 1.0), grouped)
    dense = work.kind[rows] == OpClass.CONV
    padded = np.where(dense, _tiled_flops(work, rows), work.flops[rows] * np.ceil(n / 8) * 8 / n)
    return padded / (np.where(dense, model.conv, grouped) * rate)


def _tiled_flops(work: Work, rows: Rows) -> Floats:
    """Flops of dense convolutions whose channels are filled up to a tile's width.

    Forward and for the image's gradient the columns are channels; for the weight's gradient the sums' length is too.
    """
    n, k = work.n[rows], work.k[rows]
    channels = np.maximum(k / work.window[rows], 1.0)
    once = np.minimum(2 * work.m[rows] * n * k, work.flops[rows])
    weight, image = once * _filled(n, _TILE) * _filled(k, _TILE), (work.flops[rows] - once) * _filled(channels, _TILE)
    forward = work.flops[rows] * _filled(n, _TILE) * _filled(channels, 8)
    return np.where(work.backward[rows], weight + image * _filled(n, 8), forward)


def _filled(width: Floats, least: int) -> Floats:
    """What filling up to eights, and to `least`, multiplies a width by."""
    return np.asarray(np.maximum(np.ceil(width / 8) * 8, least) / np.maximum(width, 1.0))


def _attention_seconds(work: Work, rows: Rows, rate: Floats, device: Device, model: TimeModel) -> Floats:
    # float32 goes through tensor cores as three products of tf32 parts
    parts = device.flops_per_s.get("tf32", 0.0) / 3 * _power(device, model)
    rate = np.where(work.dtype[rows] == 0, np.maximum(rate, parts), rate)
    share = np.where(
        work.kind[rows] == OpClass.ATTENTION_FORWARD, model.attention_forward, model.attention_backward
    ) * np.where(["cudnn" in work.names[i] for i in rows], model.cudnn_attention, 1.0)
    return work.flops[rows] / (share * rate)
