"""Operators whose result's shape is a value: what they give on a virtual GPU where nobody knows that value.

A shape is never taken smaller than it can be: everything is selected, everything is distinct. That is stated with the
result, since a real run may need less; a silent underestimate would be worse.

    x[mask]              all positions of mask                nonzero, masked_select, unique      as many as there are
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dnnmem.profilers.script_twins import Twins

INDEXED = frozenset({
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index",
    "aten::_unsafe_index_put",
})  # fmt: skip
"""Operators that take positions, or masks in their place."""
_POSITIONS = frozenset({"aten::nonzero_numpy", "aten::argwhere"})
_SELECTS = "{}: which elements are selected depends on values that nobody knows; all of them are taken"


def is_masked_index(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether `func` indexes by a boolean tensor on a GPU."""
    if func._schema.name not in INDEXED or len(args) < 2:
        return False
    return any(_is_mask(index) for index in args[1])


def with_positions(func: Any, args: tuple[Any, ...], twins: Twins, assumed: Counter[str]) -> tuple[Any, ...]:
    """The arguments with masks turned into positions, as the operator itself does on the GPU."""
    indices: list[Any] = []
    for index in args[1]:
        if not _is_mask(index):
            indices.append(index)
        elif twins.known([index]):
            for column in twins.read(index).nonzero().t().contiguous().to(index.device).unbind(0):
                twins.mark(column, known=False)
                indices.append(column)
        else:
            assumed[_SELECTS.format(func._schema.name.replace("::", "."))] += 1
            indices.extend(_all_positions(index).unbind(1))
    return (args[0], indices, *args[2:])


def is_dynamic(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the shape of what `func` gives depends on values, other than by masks in an index."""
    name = func._schema.name
    if name == "aten::where":
        return len(args) == 1
    return name in _POSITIONS or (torch.Tag.dynamic_output_shape in func.tags and name not in INDEXED)


def bounded(func: Any, args: tuple[Any, ...], assumed: Counter[str]) -> Any:
    """The largest result that `func` can have; None where no bound is known. The assumption is counted."""
    name = func._schema.name
    told = name.replace("::", ".")
    first = args[0]
    if name in {"aten::nonzero", "aten::where", *_POSITIONS}:
        assumed[_SELECTS.format(told)] += 1
        positions = _all_positions(first)
        return list(positions.unbind(1)) if name in {"aten::where", "aten::nonzero_numpy"} else positions
    if name == "aten::masked_select":
        assumed[_SELECTS.format(told)] += 1
        return first.new_empty(torch.broadcast_shapes(first.shape, args[1].shape).numel())
    if name in {"aten::_unique", "aten::_unique2"}:
        assumed[f"{told}: which elements are distinct depends on values that nobody knows; all of them are"] += 1
        return _all_distinct(first, [*args[2:], False, False][: 1 if name == "aten::_unique" else 2])
    if name == "aten::repeat_interleave":
        assumed[f"{told}: how often an element is repeated depends on values that nobody knows; once is assumed"] += 1
        return torch.zeros_like(first) if len(args) == 1 else first.clone()
    assumed[f"{told}: its shape depends on values that nobody knows, and no bound is known: memory may be missing"] += 1
    return None


def _all_positions(mask: Tensor) -> Tensor:
    """What `nonzero` gives if everything is: the columns of one block."""
    return mask.new_empty((mask.dim(), mask.numel()), dtype=torch.long).t()


def _all_distinct(values: Tensor, wanted: list[bool]) -> Any:
    """Values, and where they came from and how often, as far as `wanted`."""
    more = [values.new_zeros(values.shape if want else 0, dtype=torch.long) for want in wanted]
    return (torch.empty_like(values).flatten(), *more)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.is_cuda and index.dtype in (torch.bool, torch.uint8)
