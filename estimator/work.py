"""What each op of a step asks of the GPU, as one table of numbers: the trace as the time model sees it.

The shapes are those of storages, since a trace holds no views. They suffice: a product's output has m and n, its flops
give k; a convolution is the product  (places, channels in / groups * window) @ (.., channels out / groups)  per group.

    aten.mm     writes [8192, 2304], 2.9e10 flops     ->  m 8192, n 2304, k = flops / (2 m n) = 768, batch 1
    aten.bmm    writes [96, 1024, 64]                 ->  batch 96, m 1024, n 64
    convolution writes [8, 64, 56, 56], weight [64, 4, 3, 3]  ->  groups 16: batch 16, m 25088, n 4, k 36

>>> from dnnmem.estimator.trace import Kind, Op, Storage, Trace
>>> y = Storage(id=0, nbytes=64, kind=Kind.TEMP, shape=(4, 8), dtype="bfloat16")
>>> work = work_of(Trace(ops=(Op(name="aten.mm.default", writes=(0,), flops=2 * 4 * 8 * 16),), storages={0: y}))
>>> float(work.m[0]), float(work.n[0]), float(work.k[0]), DTYPES[work.dtype[0]]
(4.0, 8.0, 16.0, 'bfloat16')
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, expm1, gcd, prod

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.convolutions import as_product, is_turned, window_elements
from dnnmem.estimator.encoding import DECODE, ENCODE, kernels_of
from dnnmem.estimator.fresh_pages import fresh_bytes
from dnnmem.estimator.op_class import ARITHMETIC, CONVOLUTIONS, OpClass, is_backward, kind_of
from dnnmem.estimator.trace import Lane, Op, Storage, Trace

DTYPES = ("float32", "tf32", "float16", "bfloat16", "float8")
"""Rates of arithmetic, as `Device.flops_per_s` names them; `Work.dtype` points here."""
GRAPHS = "cuda_graphs"
"""Key of `Origin.versions` under which a step says that the host issues it whole."""
COMPUTE = "compute"
"""Key under which it says what types it was made in, as `Precision.compute` has it: float32 is multiplied as it is
under `float32`, in tf32 under `tf32`, else in tf32 in convolutions alone."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """One row an op."""

    kind: npt.NDArray[np.int8]
    """`OpClass`."""
    m: Floats
    """Rows of a product; places of a convolution's output; elements in all for the others."""
    n: Floats
    """Columns of a product; output channels of one group; else the length of a row."""
    k: Floats
    """Length of the sums of a product; the head's width for attention; labels that one warp walks; else 0."""
    batch: Floats
    """Products of that size; groups of a convolution; else 1."""
    flops: Floats
    """Floating-point operations that are carried out: those a causal kernel skips are left out."""
    bytes: Floats
    """Bytes it must read and write at least once."""
    dtype: npt.NDArray[np.int8]
    """Index into `DTYPES`: what its arithmetic runs in."""
    item_bytes: Floats
    """Bytes of an element of its output."""
    align: Floats
    """Elements that all its matrices' rows are a multiple of, at most 16."""
    window: Floats
    """Elements of a convolution's window: 9 for 3x3; else 1."""
    turned: npt.NDArray[np.bool_]
    """A convolution for tensor cores over images whose channels lie apart: cuDNN copies them into order and back."""
    backward: npt.NDArray[np.bool_]
    """It computes gradients by itself: of its input, its weights, or both."""
    kernels: Floats
    """Kernels it launches."""
    host_ops: Floats
    """Operators the host could dispatch meanwhile: 1, 3 for a collective, 0 where nothing is dispatched."""
    measured: Floats
    """Seconds that were measured; NaN where none were."""
    names: tuple[str, ...]
    """Operators without namespace, overload and the mark of an in-place one: `addmm`."""
    fresh_bytes: Floats
    """Bytes of the memory it gets that the system must map anew; 0 on a GPU."""


_COLUMNS = (
    "kind", "m", "n", "k", "batch", "flops", "bytes", "dtype", "item_bytes", "align", "window", "turned",
    "backward", "kernels", "host_ops",
    "measured",
)  # fmt: skip
_TYPES = {"kind": np.int8, "dtype": np.int8, "turned": np.bool_, "backward": np.bool_}
_RATES = {"float32": 0, "float64": 0, "tf32": 1, "float16": 2, "bfloat16": 3, "complex64": 0}
_ITEM_BYTES = {
    "float64": 8, "int64": 8, "complex64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2,
}  # fmt: skip
_SORT_KERNELS = 20
"""Of an embedding's gradient, which sorts 64-bit tokens by eight digits before it adds their rows up."""
_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "logical_not", "signbit"})
"""Operators whose kernels load and store whole vectors though their results are of another type."""
_TURNS = (2, 4)
"""More kernels of a convolution over images whose channels lie apart, forward and backward."""
_COLLECTIVE_HOST_OPS = 3
"""What torch.distributed does on the host for a collective: its dispatch, events on two streams, NCCL's enqueueing."""
_Row = tuple[float, ...]


def work_of(trace: Trace) -> Work:
    """The table of `trace`, in the order of its ops."""
    graphs = GRAPHS in trace.origin.versions
    tf32 = _TF32.get(trace.origin.versions.get(COMPUTE, ""), CONVOLUTIONS)
    like = _likeness(trace.storages)
    known: dict[tuple[object, ...], int] = {}
    rows: list[_Row] = []
    row_of, names = [], dict[str, str]()
    for op in trace.ops:  # blocks are alike
        used = (*op.reads, *op.writes)
        first = dict(zip(reversed(used), range(len(used) - 1, -1, -1), strict=True))
        places = () if len(first) == len(used) else tuple([first[i] for i in used])
        key = (
            op.name, id(op.lane), op.flops, op.masked_flops, op.moved_bytes, op.seconds, len(op.reads), places,
            *map(like.get, used),
        )  # fmt: skip
        row = known.get(key)
        if row is None:
            row = known[key] = len(rows)
            rows.append(_row(op, trace.storages, graphs=graphs, tf32=tf32))
            names[op.name] = op.name.partition(".")[2].partition(".")[0].rstrip("_")
        row_of.append(row)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_COLUMNS)
    places_of = np.array(row_of, dtype=np.intp)
    return Work(
        **{
            name: np.array(column, dtype=_TYPES.get(name, np.float64))[places_of]
            for name, column in zip(_COLUMNS, columns, strict=True)
        },
        names=tuple([names[op.name] for op in trace.ops]),
        fresh_bytes=fresh_bytes(trace),
    )


def _likeness(storages: Mapping[int, Storage]) -> dict[int, int]:
    """A number for each storage, the same for those that `_row` cannot tell apart."""
    numbers: dict[tuple[object, ...], int] = {}
    return {
        i: numbers.setdefault((s.nbytes, s.shape, s.dtype, s.name, s.channels_last), len(numbers))
        for i, s in storages.items()
    }


def _row(op: Op, storages: Mapping[int, Storage], *, graphs: bool, tf32: Container[OpClass]) -> _Row:
    kind = kind_of(op.name) if op.lane is Lane.COMPUTE else OpClass.LANE
    if kind is OpClass.STREAM and not op.moved_bytes and not op.flops:
        kind = OpClass.NONE
    out = _main(op.reads if kind is OpClass.INDEX and is_backward(op.name) else op.writes or op.reads, storages)
    m, n, k, batch, align = 0.0, 0.0, 0.0, 1.0, 16
    if kind is OpClass.GEMM and op.flops:
        m, n, k, batch = _heads(op, storages, _product(op, out))
        align = _alignment(op, storages)
    elif kind is OpClass.CONV and op.flops:
        kind, m, n, k, batch = as_product(op, storages)
        align = gcd(16, int(n), int(k))
    elif kind is OpClass.STREAM:
        kind = _traffic(op, storages)
    moved = op.moved_bytes
    if kind not in ARITHMETIC and out is not None:
        m, n = float(prod(out.shape)), float(out.shape[-1] if out.shape else 1)
        if "nll_loss_" in op.name:
            k = _lone_labels(op, storages)
        elif kind is OpClass.GROUP_NORM:
            n = _moments_row(op, storages, m)
        elif "embedding_dense_backward" in op.name:
            partial = _partial_sums(op, storages, m)
            m, moved = m + partial, moved + int(3 * 4 * partial)  # written, read, added up
    elif kind in (OpClass.ATTENTION_FORWARD, OpClass.ATTENTION_BACKWARD) and out is not None:
        k = float(out.shape[-1] if out.shape else 1)
    dtype = _operand(op, storages) if kind is OpClass.GEMM else out.dtype if out is not None else "float32"
    kernels = _kernels(op, kind, storages)
    return (
        kind, m, n, k, batch, max(op.flops - op.masked_flops, 0), moved, _rate(dtype, kind, tf32),
        _ITEM_BYTES.get(dtype, 1), align, window_elements(op, storages) if kind in CONVOLUTIONS else 1.0,
        kind in CONVOLUTIONS and is_turned(op, storages), is_backward(op.name), kernels,
        0 if graphs or (kind is OpClass.NONE and not op.reads and not op.writes) else _host_ops(op, kernels),
        np.nan if op.seconds is None else op.seconds,
    )  # fmt: skip


def _moments_row(op: Op, storages: Mapping[int, Storage], elements: float) -> float:
    """Elements that one block of a group norm adds up: a group's, and backward a channel's."""
    if is_backward(op.name):
        return elements / max(prod(storages[op.reads[0]].shape[:2]), 1) if op.reads[0] in storages else elements
    rows = [prod(storages[i].shape) for i in op.writes[1:2] if i in storages]
    return elements / max(*rows, 1) if rows else elements


def _lone_labels(op: Op, storages: Mapping[int, Storage]) -> float:
    """Labels whose log-probabilities one warp adds up, or whose gradients it sets."""
    scalars = op.reads[:1] if is_backward(op.name) else op.writes[:1]
    alone = all(storages[i].nbytes <= 8 for i in scalars if i in storages)
    labels = [prod(storages[i].shape) for i in op.reads if i in storages and storages[i].dtype == "int64"]
    return float(max(labels, default=0)) if alone else 0.0


def _partial_sums(op: Op, storages: Mapping[int, Storage], elements: float) -> float:
    """Elements of the rows that an embedding's gradient sums up by sorted tokens: as many rows as differ."""
    table = next((storages[i].shape for i in op.writes if i in storages), ())
    if len(table) != 2 or not table[0] or not table[1]:
        return 0.0
    return float(table[0] * -expm1(-elements / table[1] / table[0]) * table[1])


_TF32: Mapping[str, Container[OpClass]] = {"float32": (), "tf32": {OpClass.GEMM, *CONVOLUTIONS}}
"""Kinds that multiply float32 as tf32. torch.backends.cudnn.allow_tf32 is true unless changed; matmul's is not."""


def _host_ops(op: Op, kernels: float) -> float:
    if op.name.startswith((ENCODE, DECODE)):
        return kernels
    return _COLLECTIVE_HOST_OPS if op.lane is Lane.COMM else 1


def _rate(dtype: str, kind: OpClass, tf32: Container[OpClass]) -> int:
    if dtype == "float32" and kind in tf32:
        return 1
    return 4 if dtype.startswith("float8") else _RATES.get(dtype, 0)


def _main(ids: Sequence[int], storages: Mapping[int, Storage]) -> Storage | None:
    """The first storage of them that is a tensor of numbers and not a scalar; else the first."""
    known = [storages[i] for i in ids[:4] if i in storages]
    return next((s for s in known if prod(s.shape) > 1), known[0] if known else None)


def _operand(op: Op, storages: Mapping[int, Storage]) -> str:
    """Type that a product multiplies in: its narrowest matrix's, since the result may be kept in a wider one."""
    types = [storages[i].dtype for i in (*op.reads, *op.writes) if i in storages and len(storages[i].shape) > 1]
    return min(types, key=lambda dtype: _ITEM_BYTES.get(dtype, 1), default="float32")


def _product(op: Op, out: Storage | None) -> tuple[float, float, float, float]:
    # A product into a view of something larger has no shape of its own: take a cube of as many flops.
    shape = out.shape if out is not None else ()
    elements = prod(shape)
    if len(shape) < 2 or op.flops < 2 * elements:
        side = (op.flops / 2) ** (1 / 3)
        return (float(elements), 1.0, op.flops / 2 / elements, 1.0) if elements > 1 else (side, side, side, 1.0)
    batch = prod(shape[:-2]) if "bmm" in op.name or "grouped" in op.name else 1
    n = shape[-1]
    return elements / batch / n, float(n), op.flops / (2 * elements), float(batch)


def _heads(
    op: Op, storages: Mapping[int, Storage], found: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """`found` put right where heads were split over ranks: the result then has all heads and a part of their width.

    Scores, which are read whole, have a rank's heads.
    """
    m, n, k, batch = found
    if "bmm" not in op.name:
        return found
    for shape in (storages[i].shape for i in op.reads if i in storages):
        if len(shape) == 3 and shape[0] < batch and k in shape[1:]:
            rows = float(shape[2] if shape[1] == k else shape[1])
            columns = m * n * batch / shape[0] / rows
            if columns >= 1 and columns == int(columns):
                return rows, columns, k, float(shape[0])
    return found


def _alignment(op: Op, storages: Mapping[int, Storage]) -> int:
    """Greatest power of two, to 16, that divides the rows of all matrices read and written."""
    rows = [storages[i].shape[-1] for i in (*op.reads, *op.writes) if i in storages and len(storages[i].shape) > 1]
    return gcd(16, *rows)


def _traffic(op: Op, storages: Mapping[int, Storage]) -> OpClass:
    """`STREAM` if all tensors have one size and type, else `EAGER`; a comparison's truth values may be narrower.

    A concatenation of parts of tensors, which lie in pieces, divides out each element's place: `INDEX`.
    """
    if "_foreach" in op.name or "_fused" in op.name or op.name.startswith("dnnmem."):
        return OpClass.STREAM
    tensors = [storages[i] for i in (*op.reads, *op.writes) if i in storages]
    if op.name.startswith("aten.cat.") and op.moved_bytes < sum(s.nbytes for s in {s.id: s for s in tensors}.values()):
        return OpClass.INDEX
    if op.name.partition(".")[2].partition(".")[0] in _COMPARISONS:
        return OpClass.STREAM if len({prod(s.shape) for s in tensors}) < 2 else OpClass.EAGER
    sizes = {(s.nbytes, s.dtype) for s in tensors if s.nbytes > 4096}
    spread = len(sizes) == 1 and any(storages[i].nbytes <= 4096 for i in op.reads if i in storages)
    return OpClass.STREAM if len(sizes) < 2 and not spread else OpClass.EAGER


def _encoding_kernels(op: Op, storages: Mapping[int, Storage]) -> int:
    """Of an op that encodes a tensor, or makes it again."""
    tensors, parts = (op.reads, op.writes) if op.name.startswith(ENCODE) else (op.writes, op.reads)
    elements = max((prod(storages[i].shape) for i in tensors[:1] if i in storages), default=0)
    kept = {storages[i].name: prod(storages[i].shape) for i in parts if i in storages}
    return kernels_of(op.name, elements, kept)


def _kernels(op: Op, kind: OpClass, storages: Mapping[int, Storage]) -> int:
    if kind in (OpClass.NONE, OpClass.LANE):
        return 0
    if op.name.startswith((ENCODE, DECODE)) or "embedding_dense_backward" in op.name:
        return _SORT_KERNELS if op.name.startswith("aten.") else _encoding_kernels(op, storages)
    if "_foreach" in op.name or "_fused_adam" in op.name or "_fused_sgd" in op.name:
        # multi_tensor_apply: at most 320 chunks of 65,536 elements, and 30 to 110 tensors, a launch
        tensors = [storages[i].shape for i in op.reads if i in storages]
        lists = 5 if "_fused" in op.name else 3
        elements = sum(map(prod, tensors)) / lists
        return max(ceil(elements / (320 * 65536)), ceil(len(tensors) / lists / 36), 1)
    turns = _TURNS[is_backward(op.name)] if kind in CONVOLUTIONS and is_turned(op, storages) else 0
    if kind in CONVOLUTIONS and is_backward(op.name):
        return turns + max(sum(1 for i in op.writes if i in storages), 1)
    if kind is OpClass.GROUP_NORM:
        return 3
    return 1 + turns
