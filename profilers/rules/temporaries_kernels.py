"""Temporaries inside CUDA's other kernels: copies that make an input contiguous, sorting, partial sums.

Learned from torch's own allocations on a virtual GPU, operator by operator; the source file is named where a formula
follows one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dnnmem.estimator.reduction import buffers
from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.needs import Find, Needs
from dnnmem.profilers.rules.packed_sequences import numbers, runs
from dnnmem.profilers.tensors import tensors_in

_aten = torch.ops.aten
_LONG = 8
_FLOAT = 4
_WELFORD = 16
_FEW_INDICES = 3072
_CHUNK = 65536


def nbytes(tensor: Tensor) -> int:
    """Bytes of its elements."""
    return tensor.numel() * tensor.element_size()


def copies(*tensors: Any) -> tuple[int, ...]:
    """Bytes of a contiguous copy for each tensor that is not contiguous."""
    return tuple(nbytes(x) for x in tensors if isinstance(x, Tensor) and not x.is_contiguous())


def _copied(*places: int) -> Find:
    """For kernels that want the arguments at these places contiguous."""

    def find(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
        return Needs(before=copies(*(args[i] for i in places if i < len(args))))

    return find


def reduced(gpu: Gpu, tensor: Tensor, dims: Any, accumulator_bytes: int) -> tuple[int, ...]:
    """Buffers of a reduction over `dims`, all if None."""
    chosen = [dims] if isinstance(dims, int) else list(dims or ())
    layout = tuple(tensor.shape), tuple(tensor.stride())
    return buffers(layout, chosen, gpu=gpu.threads, accumulator_bytes=accumulator_bytes)


def _reduction(accumulator_bytes: int | None = None, *, dims_at: int | None = 1) -> Find:
    """`accumulator_bytes`: None for sums, which take 4 bytes for float32 and less; 0 for the element's own."""

    def find(gpu: Gpu, args: Any, kwargs: Any, out: Any) -> Needs:
        x = args[0]
        dims = args[dims_at] if dims_at is not None and len(args) > dims_at else kwargs.get("dim")
        size = max(_FLOAT, x.element_size()) if accumulator_bytes is None else accumulator_bytes or x.element_size()
        is_cast = accumulator_bytes is None and not x.is_floating_point() and x.dtype is not out.dtype
        whole = (x.numel() * out.element_size(),) if is_cast else ()
        return Needs(before=whole, during=[reduced(gpu, x, dims, size)])

    return find


def _loss(gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    """The loss of each element is the output's own block; its mean is a reduction."""
    x = args[0]
    return Needs(during=[(nbytes(x), *reduced(gpu, x, None, _FLOAT))] if out.dim() == 0 and x.dim() else ())


def _softmax_safely(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """Which rows are masked throughout, as booleans of elements and rows: native/transformers/attention.cpp."""
    x = args[0]
    return Needs(during=[(x.numel(), x.numel() // max(x.shape[args[1]], 1))])


def _softmax_backward(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """The product of gradient and output: `softmax_backward_cuda_out` in cuda/SoftMax.cu."""
    return Needs(during=[(nbytes(args[0]),)])


def _norm_backward(weights: int) -> Find:
    """Many short rows are summed up in two stages, for each of the weights (scale, shift).

    `LaunchGammaBetaBackwardCUDAKernel` in cuda/layer_norm_kernel.cu.
    """

    def find(gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
        gradient, x, shape = args[0], args[1], args[2]
        width = int(torch.Size(shape).numel())
        rows = x.numel() // max(width, 1)
        made = copies(gradient, x)
        if rows <= 64 * 1024 or width // 32 >= gpu.threads.sm_count / 2:
            return Needs(before=made)
        parts = -(-rows // 32)
        sums = buffers(((parts, width), (width, 1)), (0,), gpu=gpu.threads)
        return Needs(before=made, during=[(*(parts * width * x.element_size(),) * weights, *sums)])

    return find


def _roll(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    """One dimension after the other: `roll_common` in native/TensorTransformations.h."""
    dims = args[2] if len(args) > 2 else ()
    return Needs(before=(*copies(args[0]), *((nbytes(out),) if len(dims) > 1 else ())))


def _group_norm(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """Scale and shift of each channel of each sample, in float32."""
    x, n, c = args[0], args[3], args[4]
    return Needs(before=copies(x), during=[(n * c * _FLOAT, n * c * _FLOAT)])


def _group_norm_backward(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    n, c, groups = args[5], args[6], args[8]
    channels, scales = n * c * _FLOAT, n * groups * _FLOAT
    return Needs(before=copies(args[0], args[1]), during=[(channels, channels, scales, scales, channels)])


def _embedding_backward(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """Many indices are sorted and summed by segments: `embedding_backward_cuda_kernel`."""
    gradient, indices, rows, padding = args[:4]
    n, width = indices.numel(), gradient.shape[-1]
    if n <= _FEW_INDICES and padding < 0:
        return Needs(before=copies(gradient, indices))
    parts = n // 10 + min(n, rows)
    sorting = (*(n * _LONG,) * 3, _sorting(n, _LONG))
    summing = (*(n * _LONG,) * 5, parts * _LONG, parts * width * _FLOAT)
    return Needs(before=copies(gradient, indices), during=[sorting, summing])


def _index_put(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """Accumulating sorts the indices: `index_put_with_sort_kernel` in cuda/Indexing.cu."""
    indices, values, accumulate = args[1], args[2], bool(args[3]) if len(args) > 3 else False
    found = [x for x in indices if x is not None and x.dtype is not torch.bool]
    if not accumulate or not found:
        return Needs()
    n = torch.broadcast_shapes(*(x.shape for x in found)).numel()
    return Needs(before=(n * _LONG, *copies(values)), during=[(*(n * _LONG,) * 4, _sorting(n, _LONG))])


def _index(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """Several index tensors get one layout: `make_info` in native/TensorAdvancedIndexing.cpp."""
    found = [x for x in args[1] if x is not None and x.dtype is not torch.bool]
    if len(found) < 2:
        return Needs()
    expanded = torch.broadcast_tensors(*found)
    return Needs(before=copies(*expanded)) if len({x.stride() for x in expanded}) > 1 else Needs()


def _sort(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """A range of positions, and CUB's buffers for many of them."""
    x = args[0]
    return Needs(during=[(x.numel() * _LONG, _sorting(x.numel(), x.element_size()))] if x.dim() == 1 else ())


def _sorting(n: int, key_bytes: int) -> int:
    """CUB's radix sort of n keys with 8-byte values: one more of each, and histograms."""
    return n * (key_bytes + _LONG) + n // 5 + 8192 if n > _FEW_INDICES else 1


def _cumulative(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    """The input in the type of the output."""
    return Needs(during=[(nbytes(out),)] if out.dtype is not args[0].dtype else ())


def _dropout(_gpu: Gpu, _args: Any, _kwargs: Any, _out: Any) -> Needs:
    """The mask is made first: `fused_dropout_kernel` in cuda/Dropout.cu."""
    return Needs(order=(1, 0))


def _foreach_norm(_gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> Needs:
    """A partial norm for each chunk of the largest tensor, for all tensors: cuda/ForeachReduceOp.cu."""
    tensors = list(tensors_in(args[:1]))
    chunks = max((-(-x.numel() // _CHUNK) for x in tensors), default=0)
    return Needs(before=(len(tensors) * chunks * _FLOAT,))


def _overloads(packet: str, *names: str) -> list[Any]:
    """The operator's overloads of these names that the installed torch has."""
    operators = getattr(_aten, packet, None)
    return [getattr(operators, name) for name in names or ("default",) if hasattr(operators, name)]


def _ctc_loss(_gpu: Gpu, _args: Any, _kwargs: Any, out: Any) -> Needs:
    """Both lengths and the places of the targets go to the GPU; the variables of forward are made first."""
    return Needs(before=(out[0].shape[0] * _LONG,) * 3, order=(1, 0))


def _ctc_loss_backward(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    """The same, and the variables of backward, as many as those of forward, argument 6."""
    return Needs(before=(*(out.shape[1] * _LONG,) * 3, nbytes(args[6])))


def _pack_padded_sequence(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    """Steps with as many sequences are copied together, and then joined: PackedSequence.cpp."""
    padded, _, batch_first = args
    by_steps = padded.transpose(0, 1) if batch_first else padded
    row, whole = nbytes(by_steps[0, :1]), int(by_steps.shape[1])
    copied = (n for n in runs(numbers(out[1])) if not (by_steps.is_contiguous() and (n[0] == whole or n == (1, 1))))
    return Needs(before=tuple(row * size * steps for size, steps in copied))


_FAMILIES: tuple[tuple[Find, list[Any]], ...] = (
    (_reduction(), [*_overloads("sum", "default", "dim_IntList"), *_overloads("mean", "default", "dim")]),
    (_reduction(), [*_overloads("norm", "Scalar"), *_overloads("prod", "default", "dim_int")]),
    (_reduction(dims_at=2), [*_overloads("norm", "ScalarOpt_dim"), *_overloads("linalg_vector_norm")]),
    (_reduction(0), [*_overloads("amax"), *_overloads("amin"), *_overloads("max"), *_overloads("min")]),
    (_reduction(_WELFORD), [*_overloads("var", "correction"), *_overloads("std", "correction")]),
    (_reduction(_WELFORD), [*_overloads("var_mean", "correction"), *_overloads("argmax"), *_overloads("argmin")]),
    (_softmax_backward, _overloads("_softmax_backward_data")),
    (_copied(0, 1), _overloads("_log_softmax_backward_data")),
    (
        _copied(0),
        [
            *_overloads("_softmax"),
            *_overloads("_log_softmax"),
            *_overloads("native_layer_norm"),
            *_overloads("_fused_rms_norm"),
        ],
    ),
    (_copied(0), [*_overloads("upsample_nearest2d_backward"), *_overloads("upsample_bilinear2d_backward")]),
    (_roll, _overloads("roll")),
    (_copied(1), _overloads("embedding")),
    (_loss, [*_overloads("mse_loss"), *_overloads("smooth_l1_loss"), *_overloads("huber_loss")]),
    (_softmax_safely, _overloads("_safe_softmax")),
    (_norm_backward(2), _overloads("native_layer_norm_backward")),
    (_norm_backward(1), _overloads("_fused_rms_norm_backward")),
    (_group_norm, _overloads("native_group_norm")),
    (_group_norm_backward, _overloads("native_group_norm_backward")),
    (_embedding_backward, _overloads("embedding_dense_backward")),
    (_index_put, _overloads("_index_put_impl_")),
    (_index, _overloads("index", "Tensor")),
    (_sort, _overloads("sort", "default", "stable")),
    (_cumulative, [*_overloads("cumsum"), *_overloads("cumprod")]),
    (_dropout, _overloads("native_dropout")),
    (_foreach_norm, _overloads("_foreach_norm", "Scalar")),
    (_pack_padded_sequence, _overloads("_pack_padded_sequence")),
    (_ctc_loss, _overloads("_ctc_loss", "default", "Tensor")),
    (_ctc_loss_backward, _overloads("_ctc_loss_backward", "default", "Tensor")),
)

TEMPORARIES = {func: find for find, funcs in _FAMILIES for func in funcs}
"""What each operator needs inside, called with the GPU, its arguments and its outputs."""
