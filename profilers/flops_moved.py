"""How many bytes an operator must read and write at least once, from its schema and the shapes it is given.

This is the traffic that no kernel can avoid; the time model divides it by an achieved bandwidth.

    input               its distinct elements: an expanded dimension counts once, a repeated argument once;
                        a norm, softmax or convolution copies an expanded one out first, and reads the copy
    output              its elements, unless it is a view of an input
    changed in place    read and written; only written by copy_, fill_, zero_ and the random fills
    gradient of a part  zeros are written first, then the part read and written
    rows by index       the rows touched, never the whole table (embedding, gather, index_add_, scatter_, cross entropy)
    view, shape, empty  nothing

>>> import torch
>>> x, bias = torch.empty(64, 128, device="meta"), torch.empty(128, device="meta").expand(64, 128)
>>> rule = bytes_rule(torch.ops.aten.add.Tensor)
>>> rule((x, bias), {}, x + bias) == (64 * 128 + 128 + 64 * 128) * 4
True
>>> bytes_rule(torch.ops.aten.view.default)((x, [128, 64]), {}, x.view(128, 64))
0
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import prod
from typing import Any, TypeAlias

import torch

BytesRule: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any], Any], int]
"""`rule(args, kwargs, out)`: bytes moved by one call, as a dispatch mode sees it."""

# fmt: off
_NOTHING_MOVES = frozenset({
    # views in all but their schema
    "_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "_reshape_alias", "lift", "lift_fresh",
    # memory that nobody fills
    "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "_efficientzerotensor",
    "resize_", "resize_as_", "_resize_output_",
    # a tensor's description changed or asked for
    "set_", "detach_", "squeeze_", "swapaxes_", "swapdims_", "record_stream", "sym_size", "sym_numel", "sym_stride",
    "sym_storage_offset", "sym_is_contiguous", "is_same_size", "_nnz", "_version", "is_pinned", "_fused_sdp_choice",
    "_has_same_storage_numel", "_has_compatible_shallow_copy_type", "_assert_scalar", "_assert_tensor_metadata",
})
"""Operators that touch no element though their schema does not say so."""

_ONLY_WRITES = frozenset({
    "copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_",
    "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_", "log_normal_", "cauchy_",
})
"""In-place operators that do not read what they overwrite."""

_TEMPLATES = frozenset({
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_full",
})
"""Factories whose tensor argument gives only a shape."""

_GATHERS = frozenset({"embedding", "index", "_unsafe_index", "index_select", "gather", "take", "masked_select"})
"""Operators that read as many elements of the first argument as they return."""

_PASTES = frozenset({"slice_backward", "select_backward", "diagonal_backward"})
"""Operators that write zeros, and then copy the gradient of a part into them."""

_WANTS_WHOLE = frozenset({
    "native_layer_norm", "native_layer_norm_backward", "_fused_rms_norm", "_fused_rms_norm_backward",
    "native_group_norm", "native_group_norm_backward", "_softmax", "_softmax_backward_data", "_log_softmax",
    "_log_softmax_backward_data", "convolution", "convolution_backward", "embedding_dense_backward",
})
"""Operators that make their inputs contiguous before they begin."""

_UPDATES = frozenset({"scatter_add_", "scatter_reduce_", "index_add_", "index_reduce_"})
"""In-place operators that read and write elements chosen by an index."""

_OVERWRITES = frozenset({"scatter_", "index_copy_", "index_fill_", "index_put_", "_index_put_impl_", "put_"})
"""In-place operators that write elements chosen by an index, and read them if told to accumulate."""
# fmt: on


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the distinct elements behind `tensor`: expanded and overlapping dimensions count once."""
    try:
        if tensor.is_contiguous():
            return int(tensor.nbytes)
    except RuntimeError:  # compressed sparse layouts have no contiguity
        return int(tensor.nbytes)
    if tensor.layout is not torch.strided:
        return _sparse_bytes(tensor)
    shape, strides = tensor.shape, tensor.stride()
    distinct = prod(size for size, stride in zip(shape, strides, strict=True) if stride)
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return int(min(distinct, span)) * tensor.element_size()


def bytes_rule(func: torch._ops.OpOverload) -> BytesRule:
    """The rule for `func`, made from its schema: make it once per operator, not per call."""
    name = func._schema.name.removeprefix("aten::")
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name in _UPDATES or name in _OVERWRITES:
        return _scatter(name)
    if name in _NOTHING_MOVES or name.startswith("prim::") or torch.Tag.inplace_view in func.tags or _is_view(func):
        return _nothing
    if func._schema.is_mutable:
        return _mutation(func, only_writes=name in _ONLY_WRITES)
    return _function


def _is_view(func: torch._ops.OpOverload) -> bool:
    returns = func._schema.returns
    return not func._schema.is_mutable and bool(returns) and all(value.alias_info is not None for value in returns)


def _sparse_bytes(tensor: torch.Tensor) -> int:
    # Coordinates are int64, one per sparse dimension; each stored element is a block of the dense dimensions.
    if tensor.layout is not torch.sparse_coo:
        return int(tensor.numel()) * tensor.element_size()
    block = prod(tensor.shape[tensor.sparse_dim() :]) * tensor.element_size()
    return int(tensor._nnz()) * (int(block) + 8 * tensor.sparse_dim())


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _total(tensors: Iterable[torch.Tensor]) -> int:
    # Distinct objects: x * x reads x once.
    return sum(tensor_bytes(tensor) for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _nothing(_args: tuple[Any, ...], _kwargs: dict[str, Any], _out: object) -> int:
    return 0


def _only_output(_args: tuple[Any, ...], _kwargs: dict[str, Any], out: object) -> int:
    return _total(_tensors((out,)))


def _function(args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> int:
    reads = chain(args, kwargs.values()) if kwargs else args
    return _total(_tensors(reads)) + _total(_tensors((out,)))


def _paste(args: tuple[Any, ...], _kwargs: dict[str, Any], out: object) -> int:
    return 2 * tensor_bytes(args[0]) + _total(_tensors((out,)))


def _whole(args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> int:
    reads = list(_tensors(chain(args, kwargs.values())))
    copied = sum(2 * int(x.nbytes) for x in reads if x.layout is torch.strided and tensor_bytes(x) < x.nbytes)
    return _total(reads) + copied + _total(_tensors((out,)))


def _mutation(func: torch._ops.OpOverload, *, only_writes: bool) -> BytesRule:
    """Rule of an operator that changes arguments: what is read, what is changed, and what is new."""
    schema = func._schema
    changed = [
        (index, argument.name, only_writes or argument.is_out)
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    fused = schema.name.startswith("aten::_fused_")
    fresh = [index for index, value in enumerate(schema.returns) if value.alias_info is None]
    single = len(schema.returns) == 1

    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        written: list[Any] = []
        unread: set[int] = set()
        for index, name, is_out in changed:
            value = args[index] if index < len(args) else kwargs.get(name)
            if fused and name == "grads" and kwargs.get("grad_scale") is None:
                continue  # a fused optimizer writes gradients only to unscale them
            written.append(value)
            if is_out:
                unread.update(id(tensor) for tensor in _tensors((value,)))
        reads = (tensor for tensor in _tensors(chain(args, kwargs.values())) if id(tensor) not in unread)
        new = (out,) if single and fresh else [out[index] for index in fresh]
        return _total(reads) + _total(_tensors(written)) + _total(_tensors(new))

    return rule


def _gather(args: tuple[Any, ...], kwargs: dict[str, Any], out: torch.Tensor) -> int:
    rows = min(tensor_bytes(args[0]), tensor_bytes(out))
    others = chain(args[1:], (value for name, value in kwargs.items() if name != "out"))
    return rows + _total(_tensors(others)) + tensor_bytes(out)


def _scatter(name: str) -> BytesRule:
    def rule(args: tuple[Any, ...], kwargs: dict[str, Any], _out: object) -> int:
        target: torch.Tensor = args[0]
        touched = min(tensor_bytes(target), _touched(name, args) * target.element_size())
        accumulates = name in _UPDATES or "reduce" in kwargs or ("put" in name and len(args) > 3 and bool(args[3]))
        return touched * (1 + accumulates) + _total(_tensors(chain(args[1:], kwargs.values())))

    return rule


def _touched(name: str, args: tuple[Any, ...]) -> int:
    """Elements of the target that an index operator may reach."""
    target = args[0]
    if name.startswith("scatter"):  # (self, dim, index, source)
        return int(args[2].numel())
    if name == "put_":  # (self, index, source)
        return int(args[1].numel())
    if name.startswith("index_") and not name.startswith("index_put"):  # (self, dim, index, source)
        return int(args[2].numel()) * int(target.numel()) // max(int(target.shape[args[1]]), 1)
    return _rows_put(target, args[1])


def _rows_put(target: torch.Tensor, indices: Iterable[torch.Tensor | None]) -> int:
    # Integer indices broadcast together; a mask may reach all it covers; dimensions without an index are whole.
    shapes, kept, dim = [], 1, 0
    for index in indices:
        if index is None:
            kept *= int(target.shape[dim])
            dim += 1
        elif index.dtype in {torch.bool, torch.uint8}:
            kept *= int(index.numel())
            dim += index.dim()
        else:
            shapes.append(index.shape)
            dim += 1
    reached = torch.broadcast_shapes(*shapes)
    return kept * int(prod(reached)) * int(prod(target.shape[dim:]))


def _embedding_bag(args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> int:
    table, indices = args[:2]
    rows = min(tensor_bytes(table), int(indices.numel() * table.shape[1] * table.element_size()))
    return rows + _total(_tensors(chain(args[1:], kwargs.values()))) + _total(_tensors((out,)))


def _nll_loss(args: tuple[Any, ...], _kwargs: dict[str, Any], out: object) -> int:
    picked = int(args[1].numel() * args[0].element_size())
    return picked + _total(_tensors(args[1:])) + _total(_tensors((out,)))


def _nll_loss_backward(args: tuple[Any, ...], _kwargs: dict[str, Any], out: object) -> int:
    # The log-probabilities give only a shape.
    return _total(_tensors((args[0], *args[2:]))) + _total(_tensors((out,)))


def _one_element(args: tuple[Any, ...], _kwargs: dict[str, Any], _out: object) -> int:
    return int(args[0].element_size())


_SPECIAL: dict[str, BytesRule] = {
    **dict.fromkeys(_TEMPLATES, _only_output),
    **dict.fromkeys(_GATHERS, _gather),
    **dict.fromkeys(_PASTES, _paste),
    **dict.fromkeys(_WANTS_WHOLE, _whole),
    "_embedding_bag": _embedding_bag,
    "_embedding_bag_forward_only": _embedding_bag,
    "nll_loss_forward": _nll_loss,
    "nll_loss2d_forward": _nll_loss,
    "nll_loss_backward": _nll_loss_backward,
    "nll_loss2d_backward": _nll_loss_backward,
    "_local_scalar_dense": _one_element,
}
