"""Operators that let the host read a count before they allocate: what it reads on a virtual GPU.

They run as they are, temporaries included; only the count that a kernel leaves for the host is told to them. If it is
known, it is the true one. If not, a shape is never taken smaller than it can be: everything is selected, everything is
distinct. That is stated with the result, since a real run may need less; a silent underestimate would be worse.

    x[mask]    known mask: as many as are set      unknown: all       unknown, but of a balanced routing: its share
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dnnmem.profilers.gpu_twins import Twins

INDEXED = frozenset({
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index",
    "aten::_unsafe_index_put",
})  # fmt: skip
"""Operators that take positions, or masks in their place."""
_POSITIONS = frozenset({"aten::nonzero", "aten::nonzero_numpy", "aten::argwhere", "aten::where"})
_DISTINCT = {
    "aten::_unique": None, "aten::_unique2": None, "aten::unique_consecutive": None, "aten::unique_dim": 1,
    "aten::unique_dim_consecutive": 1, "aten::embedding_renorm_": None,
}  # fmt: skip
"""Operators that find what is distinct, and which argument is the dimension."""
_CHECKS = frozenset({"aten::segment_reduce", "aten::_segment_reduce_backward"})
"""Operators that only make sure of something."""
_UNBOUND = frozenset({"aten::to_sparse", "aten::_to_sparse", "aten::to_sparse_csr", "aten::_to_sparse_csr"})


class Counts:
    """Finds what an operator's host code reads; None for the many that read nothing."""

    def __init__(self, twins: Twins, assumed: Counter[str]) -> None:
        """Args: `assumed` counts assumptions by sentence."""
        self._twins, self._assumed = twins, assumed
        self.bounded = 0
        """How often a shape was taken as large as it can be."""
        self._rules: dict[str, Callable[[str, Sequence[Any]], Sequence[int] | None]] = {
            **dict.fromkeys(INDEXED, self._of_masks),
            **dict.fromkeys(_POSITIONS, self._of_positions),
            **dict.fromkeys(_DISTINCT, self._of_distinct),
            **dict.fromkeys(_CHECKS, lambda *_: ()),
            **dict.fromkeys(_UNBOUND, self._of_positions),
            "aten::masked_select": self._of_selected,
            "aten::isin": self._of_members,
            "aten::repeat_interleave": self._of_repeats,
            "aten::bincount": self._of_bins,
            "aten::histc": self._of_range,
            "aten::one_hot": self._of_classes,
            "aten::_coalesce": lambda name, args: (self._all_distinct(name, args[0]._nnz()),),
            "torchvision::nms": lambda name, args: (self._all_kept(name, len(args[0])),),
        }

    def concerns(self, name: str) -> bool:
        """Whether the operator's host code may read something."""
        return name in self._rules

    def find(self, name: str, args: Sequence[Any]) -> Sequence[int] | None:
        """What the host reads of the operator `name` over `args`, in order; None if nothing."""
        return self._rules[name](name, args)

    def _known(self, tensor: Tensor) -> Tensor | None:
        """The values, if they are known."""
        return self._twins.read(tensor) if tensor.is_cuda and self._twins.worth([tensor]) else None

    def _set_in(self, name: str, mask: Tensor, shape: Sequence[int] | None = None) -> int:
        """How many elements of `mask` are set, once it is spread over `shape`."""
        every = math.prod(mask.shape if shape is None else shape)
        known = self._known(mask)
        if known is not None:
            return int(torch.count_nonzero(known if shape is None else known.expand(shape)))
        share = self._twins.share(mask)
        if share is not None:
            return round(every * share)
        if every:
            self._bound(name, "which elements are selected depends on values that nobody knows; all of them are taken")
        return every

    def _of_positions(self, name: str, args: Sequence[Any]) -> Sequence[int] | None:
        if name == "aten::where" and len(args) > 1:
            return None
        return (self._set_in(name, args[0]),)

    def _of_selected(self, name: str, args: Sequence[Any]) -> Sequence[int]:
        return (self._set_in(name, args[1], torch.broadcast_shapes(args[0].shape, args[1].shape)),)

    def _of_masks(self, name: str, args: Sequence[Any]) -> Sequence[int] | None:
        """Of each mask among the indices; they select equally many, and as many as there are values to put."""
        masks = [index for index in args[1] if _is_mask(index)]
        if not masks or _is_fill(name, args):
            return None
        known = [self._known(mask) for mask in masks]
        told = {int(torch.count_nonzero(values)) for values in known if values is not None}
        told |= {index.numel() for index in args[1] if isinstance(index, Tensor) and not _is_mask(index)} - {1}
        if not told and len(args) > 2 and isinstance(args[2], Tensor):
            first = args[2].dim() - (args[0].dim() - sum(mask.dim() for mask in masks))
            told = set(args[2].shape[:1]) - {1} if first == 1 else set()
        if len(told) == 1 and all(values is None for values in known):
            return tuple(told) * len(masks)
        most = min((self._set_in(name, m) for m, v in zip(masks, known, strict=True) if v is None), default=0)
        return [most if v is None else int(torch.count_nonzero(v)) for v in known]

    def _of_distinct(self, name: str, args: Sequence[Any]) -> Sequence[int]:
        where = _DISTINCT[name]
        values = args[1] if name == "aten::embedding_renorm_" else args[0]
        known = self._known(values)
        if where is not None:
            size = values.shape[args[where]]
            return (self._all_distinct(name, size) if known is None else len(known.unique(dim=args[where])),)
        if known is None:
            return (self._all_distinct(name, values.numel()),)
        found = known.unique_consecutive() if "consecutive" in name else known.unique()
        return (found.numel(),)

    def _of_members(self, name: str, args: Sequence[Any]) -> Sequence[int] | None:
        tensors = [value for value in args[:2] if isinstance(value, Tensor)]
        counts = []
        for tensor in tensors:
            known = self._known(tensor)
            counts.append(self._all_distinct(name, tensor.numel()) if known is None else known.unique().numel())
        return counts

    def _of_repeats(self, name: str, args: Sequence[Any]) -> Sequence[int] | None:
        repeats = args[0] if len(args) == 1 or not isinstance(args[1], Tensor) else args[1]
        if not isinstance(repeats, Tensor) or not repeats.is_cuda or repeats.dtype.is_floating_point:
            return None
        known = self._known(repeats)
        if known is not None:
            return (int(known.sum()),)
        count = args[0].numel() if repeats.numel() == 1 else repeats.numel()
        told = "how often an element is repeated depends on values that nobody knows, without a bound; once is assumed"
        self._assumed[f"{_told(name)}: {told}: memory may be missing"] += 1
        return (count,)

    def _of_bins(self, name: str, args: Sequence[Any]) -> Sequence[int]:
        known = self._known(args[0])
        if known is not None:
            return (int(known.min()), int(known.max())) if known.numel() else ()
        least = args[2] if len(args) > 2 else 0
        return 0, max(0, (least or self._below(name, args[0].numel())) - 1)

    def _of_range(self, name: str, args: Sequence[Any]) -> Sequence[int] | None:
        """Its least and greatest value, where the caller names no range: bit patterns, as the host takes them."""
        del name
        least, greatest = (*args[2:4], 0, 0)[:2]
        if least != greatest or not args[0].numel():
            return None
        known = self._known(args[0])
        if known is None:  # how full a bin is does not depend on it
            return 0, 0
        bits = {4: torch.int32, 8: torch.int64}.get(known.element_size(), known.dtype)
        return int(known.min().view(bits)), int(known.max().view(bits))

    def _of_classes(self, name: str, args: Sequence[Any]) -> Sequence[int] | None:
        if len(args) > 1 and args[1] >= 0:
            return None
        known = self._known(args[0])
        if known is not None:
            return (int(known.max()),) if known.numel() else ()
        return (self._below(name, args[0].numel()) - 1,)

    def _below(self, name: str, count: int) -> int:
        told = "the largest value decides its size, and nobody knows it; it is taken to be below the number of values"
        self._assumed[f"{_told(name)}: {told}: memory may be missing"] += 1
        return count

    def _all_distinct(self, name: str, count: int) -> int:
        if count:
            self._bound(name, "which elements are distinct depends on values that nobody knows; all of them are")
        return count

    def _all_kept(self, name: str, count: int) -> int:
        told = "which boxes are kept depends on values that nobody knows; all of them are, up to the program's limit"
        if count:
            self._bound(name, told)
        return count

    def _bound(self, name: str, told: str) -> None:
        self._assumed[f"{_told(name)}: {told}"] += 1
        self.bounded += 1


def _told(name: str) -> str:
    return name.replace("::", ".")


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.is_cuda and index.dtype in (torch.bool, torch.uint8)


def _is_fill(name: str, args: Sequence[Any]) -> bool:
    """Whether one value is put where a single mask says so: torch fills then, and counts nothing (TensorIndexing.h)."""
    return (
        name in {"aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
        and sum(isinstance(index, Tensor) for index in args[1]) == 1
        and isinstance(args[2], Tensor)
        and args[2].numel() == 1
        and not (len(args) > 3 and args[3])
    )
