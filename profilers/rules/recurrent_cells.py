"""Cells of recurrent networks as on CUDA: two products, and one kernel for all between them and the new states.

Follows torch's aten/src/ATen/native/RNN.cpp (the choice) and native/cuda/RNN.cu.

    lstm_cell   mm(x)  mm(h)  _thnn_fused_lstm_cell -> h', c', gates          the last of them is for the backward pass
    gru_cell    mm(x)  mm(h)  _thnn_fused_gru_cell  -> h', gates and states   alone
    backward    the gradients of all gates at once, and their sums for the biases

Under autocast all inputs are cast, the last first; weights and biases once, as long as autocast's cache lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dnnmem.profilers.rules.autocast import without_autocast
from dnnmem.profilers.rules.dispatch import kernels, operator
from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.needs import Find, Needs

_aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_GRU_KEPT = 5
"""Values for each state that the backward pass needs: `GRU_WORKSPACE_MULTIPLIER`."""


@contextmanager
def cuda_cells() -> Iterator[None]:
    """Let `lstm_cell` and `gru_cell` of fake tensors be CUDA's until the context ends."""
    casts: dict[Tensor, Tensor] = {}
    clear = torch.clear_autocast_cache

    def cleared() -> None:
        casts.clear()
        clear()

    made: dict[tuple[str, str], Callable[..., Any]] = {}
    for name, run in (("aten::lstm_cell", _lstm), ("aten::gru_cell", _gru)):
        kernel = partial(run, operator(name), casts)
        made.update({(name, "AutogradCPU"): kernel, (name, "CPU"): kernel})
    with kernels(made), patch.object(torch, "clear_autocast_cache", cleared):
        yield


Casts = dict[Tensor, Tensor]
"""Weights and biases, and what they were cast to."""


def _lstm(
    own: Any, casts: Casts, x: Tensor, states: Sequence[Tensor], *weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    if not isinstance(x, FakeTensor):
        plain: tuple[Tensor, Tensor] = own._op_dk(_COMPOSITE, x, states, *weights)
        return plain
    x, hidden, cell, of_input, of_hidden, *biases = _cast((x, *states, *weights), casts)
    with without_autocast():
        gates = x @ of_input.t(), hidden @ of_hidden.t()
        found, kept, _ = _aten._thnn_fused_lstm_cell.default(*gates, cell, *biases)
        return found, kept


def _gru(own: Any, casts: Casts, x: Tensor, state: Tensor, *weights: Tensor | None) -> Tensor:
    if not isinstance(x, FakeTensor):
        plain: Tensor = own._op_dk(_COMPOSITE, x, state, *weights)
        return plain
    x, state, of_input, of_hidden, *biases = _cast((x, state, *weights), casts)
    with without_autocast():
        gates = x @ of_input.t(), state @ of_hidden.t()
        found: Tensor = _aten._thnn_fused_gru_cell.default(*gates, state, *biases)[0]
        return found


def _cast(inputs: Sequence[Tensor | None], casts: Casts) -> list[Any]:
    """What the cell computes with: `inputs` as autocast has them."""
    if not torch._C.is_autocast_enabled("cpu"):
        return [*inputs]
    dtype = torch.get_autocast_dtype("cpu")
    with without_autocast():
        return [None if one is None else _in_type(one, dtype, casts) for one in reversed(inputs)][::-1]


def _in_type(tensor: Tensor, dtype: torch.dtype, casts: Casts) -> Tensor:
    if not (tensor.is_leaf and tensor.requires_grad and tensor.dtype is torch.float32):
        return tensor.to(dtype)
    if tensor not in casts:
        casts[tensor] = tensor.to(dtype)
    return casts[tensor]


def _lstm_made(gates: Tensor, _more: Tensor, cell: Tensor, *_biases: Tensor | None) -> tuple[Tensor, ...]:
    return _like(cell), _like(cell), _like(gates)


def _lstm_back(
    of_hidden: Tensor | None, of_cell: Tensor | None, cell: Tensor, _new: Tensor, gates: Tensor, has_biases: bool,  # noqa: FBT001
) -> tuple[Tensor | None, ...]:  # fmt: skip
    if of_hidden is None and of_cell is None:
        return None, None, None
    return _like(gates), _like(cell), _sums(gates) if has_biases else None


def _gru_made(_gates: Tensor, _more: Tensor, hidden: Tensor, *_biases: Tensor | None) -> tuple[Tensor, Tensor]:
    return _like(hidden), hidden.new_empty(hidden.shape[0], _GRU_KEPT * hidden.shape[1])


def _gru_back(of_hidden: Tensor, kept: Tensor, has_biases: bool) -> tuple[Tensor | None, ...]:  # noqa: FBT001
    gates = [kept.new_empty(kept.shape[0], kept.shape[1] // _GRU_KEPT * 3) for _ in range(2)]
    sums = [_sums(part) if has_biases else None for part in gates]
    return *gates, _like(of_hidden), *sums


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _sums(gates: Tensor) -> Tensor:
    """A value for each column."""
    return gates.new_empty(gates.shape[1])


def _in_order(*order: int) -> Find:
    def find(_gpu: Gpu, _args: Any, _kwargs: Any, _out: Any) -> Needs:
        return Needs(order=order)

    return find


CELL_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    _aten._thnn_fused_lstm_cell.default: _lstm_made,
    _aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_back,
    _aten._thnn_fused_gru_cell.default: _gru_made,
    _aten._thnn_fused_gru_cell_backward.default: _gru_back,
}
"""What the kernels give in a fake run."""

TEMPORARIES: dict[Any, Find] = {
    _aten._thnn_fused_lstm_cell.default: _in_order(2, 0, 1),
    _aten._thnn_fused_gru_cell.default: _in_order(1, 0),
}
"""In which order they make it."""
