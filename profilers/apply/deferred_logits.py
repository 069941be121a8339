"""Logits that wait for the loss: a tensor without data, which a cross entropy turns into one by chunks.

    head(hidden) -> Logits(hidden, head)    .float()  .view(-1, v)  [..., :-1, :]     change hidden, not logits
    functional.cross_entropy(logits, targets) -> the loss, by chunks

Whatever else a step that learns does with them raises `UnsupportedError`, since then they would exist whole after all.
Where nothing learns (`detach`, `argmax`, under `no_grad`) they are computed as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.apply.cross_entropy import Chunked, Fused, rows_of


class Source(NamedTuple):
    """What logits are made of."""

    rows: Tensor
    """Hidden states (..., d); with no `head` the logits themselves (..., v), of whatever type."""
    head: nn.Linear | None
    """The matrix that makes logits of them."""
    chunks: int
    """In how many pieces the loss takes them."""
    share: float = 1.0
    """What their gradients count: 1 / micro-batches."""
    classes_second: bool = False
    """True after a transposition to (batch, classes, ...)."""

    def whole(self) -> Tensor:
        """The logits."""
        rows = self.rows
        if self.head is not None:
            bias = None if self.head.bias is None else self.head.bias.to(rows.dtype)
            rows = functional.linear(rows, self.head.weight.to(rows.dtype), bias)
        return rows.transpose(1, 2) if self.classes_second else rows


class Logits(Tensor):
    """See the module."""

    source: Source

    @staticmethod
    def __new__(cls: type[Logits], source: Source, dtype: torch.dtype) -> Logits:  # noqa: PYI034 - Self is of 3.11
        """Logits in `dtype` of `source`."""
        rows, head = source.rows, source.head
        shape = (*rows.shape[:-1], rows.shape[-1] if head is None else head.out_features)
        if source.classes_second:
            shape = (shape[0], shape[2], shape[1])
        made: Logits = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=rows.device, requires_grad=rows.requires_grad
        )
        made.source = source
        return made

    def sharing(self, factor: float) -> Logits:
        """The same, whose gradients count `factor` times as much."""
        return Logits(self.source._replace(share=self.source.share * factor), self.dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the program does with them."""
        del types
        kwargs, name = kwargs or {}, func.__name__
        if func is functional.cross_entropy:
            return _cross_entropy(*args, **kwargs)
        if name == "__get__":
            name = func.__self__.__name__
        if name in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args else None
        if name == "register_hook" and isinstance(first, cls):  # FSDP's, which waits for any gradient
            return first.source.rows.register_hook(*args[1:], **kwargs)
        changed = _CHANGES[name](first, func, args[1:], kwargs) if name in _CHANGES and isinstance(first, cls) else None
        if changed is not None:
            return changed
        if torch.is_grad_enabled() and name not in _LEARNS_NOTHING:
            raise UnsupportedError(
                f"loss: the model's logits go into {name}, and not straight into a cross entropy",
                hint="leave loss.chunks and loss.fused out; functional.cross_entropy(logits.float(), targets) is found",
            )
        with torch.no_grad():
            args, kwargs = tree_map_only(cls, lambda logits: logits.source.whole().to(logits.dtype), (args, kwargs))
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """They have no data that an operator could read."""
        del types, args, kwargs
        raise UnsupportedError(
            f"loss: the model's logits go into {func}, and not straight into a cross entropy",
            hint="leave loss.chunks and loss.fused out",
        )


_FACTS = {
    "shape", "dtype", "device", "requires_grad", "is_cuda", "ndim", "layout", "is_leaf", "grad_fn", "size", "dim",
    "numel", "is_floating_point", "is_complex", "element_size", "itemsize", "__len__", "is_sparse", "is_nested",
    "is_meta", "names", "nbytes", "is_quantized", "_version", "stride", "storage_offset", "__hash__", "is_contiguous",
    "_base",
}  # fmt: skip
_LEARNS_NOTHING = {"detach", "argmax", "data", "__repr__", "tolist", "numpy"}

Change = Callable[[Logits, Any, Any, Any], "Logits | None"]
"""Logits, function, its other arguments; what it makes of them, or None if that is not known."""


def _same(logits: Logits, func: Any, args: Any, kwargs: Any) -> Logits | None:
    del func, args, kwargs
    return logits


def _typed(logits: Logits, func: Any, args: Any, kwargs: Any) -> Logits | None:
    """Another type: asked of a tensor without elements."""
    made = func(torch.empty(0, dtype=logits.dtype, device=logits.device), *args, **kwargs)
    if not isinstance(made, Tensor) or made.device != logits.device or not made.is_floating_point():
        return None
    return logits if made.dtype is logits.dtype else Logits(logits.source, made.dtype)


def _shaped(logits: Logits, func: Any, args: Any, kwargs: Any) -> Logits | None:
    """Another shape, classes still the last dimension: asked of a tensor without data."""
    shape = func(torch.empty(logits.shape, device="meta"), *args, **kwargs).shape
    if logits.source.classes_second or shape[-1:] != logits.shape[-1:]:
        return None
    rows = logits.source.rows.reshape(*shape[:-1], logits.source.rows.shape[-1])
    return Logits(logits.source._replace(rows=rows), logits.dtype)


def _picked(logits: Logits, func: Any, args: Any, kwargs: Any) -> Logits | None:
    """Some of the rows."""
    index = args[0] if isinstance(args[0], tuple) else (args[0],)
    known = all(part is None or isinstance(part, (int, slice, type(...), Tensor)) for part in index)
    reach = sum(
        part.dim() if isinstance(part, Tensor) and part.dtype is torch.bool else part is not None for part in index
    )
    is_whole = index[-1] == slice(None) if isinstance(index[-1], slice) else index[-1] is ...
    if logits.source.classes_second or not known or not (is_whole or (reach < logits.dim() and ... not in index)):
        return None
    return Logits(logits.source._replace(rows=func(logits.source.rows, *args, **kwargs)), logits.dtype)


def _turned(logits: Logits, func: Any, args: Any, kwargs: Any) -> Logits | None:
    """(batch, time, classes) to (batch, classes, time)."""
    if logits.dim() != 3 or logits.source.classes_second:
        return None
    order = func(torch.empty((2, 3, 5), device="meta"), *args, **kwargs).shape
    return Logits(logits.source._replace(classes_second=True), logits.dtype) if order == (2, 5, 3) else None


_CHANGES: dict[str, Change] = {
    **dict.fromkeys(("contiguous", "view_as_self"), _same),
    **dict.fromkeys(("float", "double", "half", "bfloat16", "to", "type", "type_as"), _typed),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze"), _shaped),
    "__getitem__": _picked,
    **dict.fromkeys(("transpose", "permute", "swapaxes", "swapdims", "mT", "movedim"), _turned),
}


def _cross_entropy(  # noqa: PLR0917 - torch's own signature
    input: Logits,  # noqa: A002 - torch's own names, which callers use
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,  # noqa: FBT001
    ignore_index: int = -100,
    reduce: bool | None = None,  # noqa: FBT001
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """`functional.cross_entropy` by chunks."""
    source = input.source
    asked = {
        "class weights": weight is not None, "label smoothing": bool(label_smoothing),
        f"reduction={reduction!r}": reduction not in {"mean", "sum"}, "targets that are probabilities":
        target.is_floating_point(), "size_average or reduce": size_average is not None or reduce is not None,
        f"classes in the last of {input.dim()} dimensions": input.dim() != 2 and not source.classes_second,
    }  # fmt: skip
    wrong = [words for words, is_so in asked.items() if is_so]
    if wrong:
        raise UnsupportedError(
            f"loss: a cross entropy with {', '.join(wrong)} cannot be taken by chunks yet",
            hint="leave loss.chunks and loss.fused out",
        )
    rows = rows_of(
        target.flatten(), ignore_index=ignore_index, reduction=reduction, share=source.share, chunks=source.chunks
    )
    flat = source.rows.flatten(0, -2)
    if source.head is None:
        loss = Chunked.apply(flat, rows)
    else:
        loss = Fused.apply(flat, source.head.weight, source.head.bias, rows)
    result: Tensor = loss.to(input.dtype)
    return result
