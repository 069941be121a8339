"""What is assumed of values that nobody knows, where the host or a shape may depend on them.

    topk sort argmax multinomial    each index as often as any other, as by a balanced router
    histc bincount                  each bin as full as any other
    isfinite isnan all              nothing is infinite, missing or wrong

>>> balanced((3, 2), dim=1, classes=3, step=2).tolist()
[[0, 1], [2, 0], [1, 2]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TRUTHS = {
    "aten::isfinite": True, "aten::all": True, "aten::isnan": False, "aten::isinf": False, "aten::isposinf": False,
    "aten::isneginf": False, "aten::_is_all_true": True, "aten::_is_any_true": False,
}  # fmt: skip
"""Operators that ask what nobody knows, and the answer: nothing is infinite or missing."""
_CHOOSE = frozenset({"aten::topk", "aten::multinomial"})
_ORDER = frozenset({"aten::sort", "aten::argsort", "aten::msort"})
_EXTREME = frozenset({"aten::argmax", "aten::argmin", "aten::max", "aten::min"})
_COUNT = frozenset({"aten::histc", "aten::bincount"})
_LAST = -1


def choice(name: str, args: Sequence[Any], kwargs: dict[str, Any], results: Sequence[Tensor]) -> Tensor | None:
    """The values of the last of `results` under the assumption of balance, on the CPU; None where none is made."""
    if name in _COUNT:
        return _even(results[-1], args[0].numel())
    indices = results[-1]
    if indices.dtype is not torch.long or not indices.numel() or not args[0].dim():
        return None
    if name in _CHOOSE:
        dim = _argument(args, kwargs, 2, "dim", _LAST) if name == "aten::topk" else _LAST
        return balanced(indices.shape, dim=dim, classes=args[0].shape[dim], step=indices.shape[dim])
    if name in _ORDER:
        dim = next((value for value in args[1:] if type(value) is int), kwargs.get("dim", _LAST))
        return balanced(indices.shape, dim=dim, classes=args[0].shape[dim], step=1)
    if name in _EXTREME and (dim := _argument(args, kwargs, 1, "dim", None)) is not None:
        rows: Tensor = torch.arange(indices.numel(), device="cpu").remainder_(args[0].shape[dim])
        return rows.reshape(indices.shape)
    return None


def is_choice(name: str) -> bool:
    """Whether an assumption of balance may be made of the operator."""
    return name in _CHOOSE or name in _ORDER or name in _EXTREME or name in _COUNT


def told(name: str) -> str:
    """The assumption as a sentence.

    >>> told("aten::topk")
    'aten.topk: what is chosen depends on values that nobody knows; each choice is assumed to be made equally often'
    """
    if name in TRUTHS:
        return f"{name.replace('::', '.')}: values that nobody knows are taken to be neither infinite nor NaN, and true"
    what, assumed = "what is chosen", "each choice is assumed to be made equally often"
    if name in _COUNT:
        what, assumed = "how full a bin is", "all are assumed to be equally full"
    elif name in _ORDER:
        what, assumed = "the order", "each element is assumed to come first equally often"
    return f"{name.replace('::', '.')}: {what} depends on values that nobody knows; {assumed}"


def balanced(shape: Sequence[int], *, dim: int, classes: int, step: int) -> Tensor:
    """Indices along `dim`, distinct within a row, such that each of `classes` comes equally often."""
    moved = torch.empty(tuple(shape), dtype=torch.long, device="cpu").movedim(dim, -1)
    count = moved.shape[-1]
    rows = torch.arange(moved.numel() // count, device="cpu")[:, None] * step
    return (rows + torch.arange(count, device="cpu")).remainder_(classes).reshape(moved.shape).movedim(-1, dim)


def _even(bins: Tensor, count: int) -> Tensor:
    """`count` things spread over the bins."""
    each, more = divmod(count, max(1, bins.numel()))
    counts = torch.full(bins.shape, each, dtype=bins.dtype, device="cpu")
    counts.view(-1)[:more] += 1
    return counts


def _argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


CHECK = "_linalg_check_errors"
"""What an operator of linear algebra asks of the status that its decomposition has left on the GPU."""


def succeed(infos: Tensor, api_name: str, *, is_matrix: bool) -> None:
    """No decomposition fails on a virtual GPU. What torch would read is a reduction, which nobody has computed."""
    del api_name, is_matrix
    infos.any()
