"""Where a watched step differs from one that nobody watches, and what the latter does there.

While a dispatch mode is active, torch takes every tensor for a subclass (`isTensorSubclassLike`) and avoids writing in
place where it otherwise would. The recorder undoes these:

    InputBuffer::accumulate    gradients of one tensor are summed into the first, if nobody else holds it
    at::linear                 the bias is added into the product
    attention without a kernel the mask is added into the scores, by the same call as their product
    FunctionsManual.cpp        backward formulas of indexing fill the zeros that they have just made, those of extremes
                               and of a loss whose target learns go on in the tensor that they have

One it cannot undo, and notes: the formulas of `prod` and `cumprod` then take a longer way, which looks at no values.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_VALUES = str(Path(__file__).with_name("gpu_values.py"))
"""Its frames stand between a program and each operator on a virtual GPU."""

_NEAR = 8
"""Frames, torch's and the recorder's own, that stand between an operator and who called it, at most."""

Fill = tuple[Any, tuple[Any, ...], frozenset[str] | None]
"""What is called instead when nobody watches, with which arguments more, and in which nodes (None: in all)."""

EXTREMES = frozenset(f"{name}Backward{i}" for name in ("Max", "Min", "Median", "Nanmedian") for i in range(2))

FILLS: dict[Any, Fill] = {
    _aten.index_put.default: (_aten._index_put_impl_.default, (True,), None),
    _aten.scatter.src: (_aten.scatter_.src, (), None),
    _aten.scatter.value: (_aten.scatter_.value, (), None),
    _aten.scatter_add.default: (_aten.scatter_add_.default, (), None),
    _aten.index_add.default: (_aten.index_add_.default, (), None),
    _aten.index_fill.int_Tensor: (_aten.index_fill_.int_Tensor, (), None),
    _aten.masked_scatter.default: (_aten.masked_scatter_.default, (), None),
    _aten.put.default: (_aten.put_.default, (), None),
    _aten.logical_and.default: (_aten.logical_and_.default, (), EXTREMES),
    _aten.mul.Tensor: (_aten.mul_.Tensor, (), frozenset({"BinaryCrossEntropyBackward0"})),
}
"""What formulas call on a tensor of their own when watched; see `Fill`."""

LONG_WAYS = frozenset({_aten.cumprod.default})
"""Operators that a backward formula calls on the longer way of `prod` and `cumprod`."""


def is_accumulation(args: tuple[Tensor, Tensor], *, made_here: bool) -> bool:
    """True if add(*args), called in backward, is the engine's own sum of gradients, in place if the first dies.

    Formulas sum too, but there the node that runs has made the first term itself (`made_here`), which the engine's has
    not unless the node feeds one tensor twice; and a Python function sums from its own frame.
    """
    if (
        torch.is_grad_enabled()
        or args[0] is args[1]
        or args[0]._is_view()
        or not _is_dense(args[0])
        or not is_formula()
    ):
        return False
    if not made_here:
        return True
    node: Any = torch._C._current_autograd_node()
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    return len(set(edges)) < len(edges)


def is_formula() -> bool:
    """True if the dispatch comes from autograd's engine or its formulas, no Python function between."""
    if torch.is_grad_enabled():
        return False
    return no_caller() or called_from("_engine_run_backward")


def fills_in(fill: Fill) -> bool:
    """True if `fill` holds in the autograd node that runs."""
    node: Any = torch._C._current_autograd_node()
    return fill[2] is None or node.name() in fill[2]


def called_from(function: str) -> bool:
    """True if the dispatch comes from the Python function of that name."""
    caller = _caller()
    return caller is not None and caller.f_code.co_name == function


def called_in(file: str) -> bool:
    """True if the dispatch comes from Python code in a file of that name, by way of a few functions of others."""
    frame = _caller()
    for _ in range(_NEAR):
        if frame is None or frame.f_code.co_filename.endswith(file):
            break
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.endswith(file)


def no_caller() -> bool:
    """True if the dispatch comes from a thread of the engine, no Python function between."""
    return _caller() is None


def call_site() -> object:
    """Which instruction of which frame led to the dispatch; equal to nothing where there is no frame."""
    caller = _caller()
    return object() if caller is None else (id(caller), caller.f_lasti)


def _caller() -> FrameType | None:
    """The frame whose call led to the dispatch; None in autograd's own threads."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "__torch_dispatch__":
        frame = frame.f_back
    frame = frame.f_back if frame is not None else None
    while frame is not None and frame.f_code.co_filename == _VALUES:
        frame = frame.f_back
    return frame


def _is_dense(tensor: Tensor) -> bool:
    """True if the elements fill a block without gaps or overlap, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted((st, n) for st, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True
