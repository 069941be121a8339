"""Tensors inside the values that programs pass around: operator arguments, batches, outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_BY_ROWS = frozenset({torch.sparse_csr, torch.sparse_bsr})
_BY_COLUMNS = frozenset({torch.sparse_csc, torch.sparse_bsc})


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among operator arguments, which nest in lists and tuples alone; quick, since every operator asks.

    >>> import torch
    >>> [t.shape for t in tensors_in((torch.ones(2), 3, [torch.ones(1), None]))]
    [torch.Size([2]), torch.Size([1])]
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def strided_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that have the memory of `tensor`: itself, or the indices and values of a sparse one.

    >>> import torch
    >>> [part.shape for part in strided_parts(torch.eye(2).to_sparse())]
    [torch.Size([2, 2]), torch.Size([2])]
    """
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in _BY_ROWS:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in _BY_COLUMNS:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return ()


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with every tensor changed; containers and plain objects are copied, the original stays as it is.

    >>> import torch
    >>> map_tensors({"x": (torch.ones(2), "label")}, lambda t: t.shape)
    {'x': (torch.Size([2]), 'label')}
    """
    changed = tree_map_only(Tensor, change, value)
    leaves = tree_leaves(changed)
    if len(leaves) == 1 and leaves[0] is value and hasattr(value, "__dict__") and not isinstance(value, (type, Tensor)):
        changed = copy.copy(value)
        for name, item in vars(value).items():
            object.__setattr__(changed, name, map_tensors(item, change))
    return changed


def is_channels_last(tensor: Tensor) -> bool:
    """True for an image (batch, channels, ..) whose channels lie next to each other in memory.

    >>> import torch
    >>> image = torch.empty(2, 3, 4, 4, device="meta")
    >>> is_channels_last(image), is_channels_last(image.to(memory_format=torch.channels_last))
    (False, True)
    """
    return tensor.dim() in (4, 5) and tensor.shape[1] > 1 and tensor.stride(1) == 1 and tensor.stride(-1) > 1
