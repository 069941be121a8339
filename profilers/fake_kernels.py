"""What kernels allocate beyond what their meta functions say, put into a fake run.

A FakeTensor has the size that an operator's meta function gives it. Some kernels make a larger block and shrink the
tensor on it, which keeps the block; oneDNN's LSTM keeps a workspace whose size only it knows, so it is asked. Found by
running every common operator for real and comparing storages.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dnnmem.profilers.rules.packed_sequences import pack

_aten = torch.ops.aten
_MOST_STEPS = 128


def _shrunk(made: torch.Size, out: Tensor) -> Tensor:
    """A tensor like `out` on a block that was made for shape `made`."""
    block = torch.empty(made, dtype=out.dtype, device=out.device)
    return block.resize_(out.shape) if block.numel() > out.numel() else out


def _loss(func: Any) -> Callable[..., Tensor]:
    """Losses whose kernel fills a block of the input's size and then shrinks it to the scalar."""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = func(*args, **kwargs)
        return out if out.dim() else _shrunk(torch.broadcast_shapes(args[0].shape, args[1].shape), out)

    return run


def _col2im(*args: Any, **kwargs: Any) -> Tensor:
    return _shrunk(args[0].shape, _aten.col2im.default(*args, **kwargs))


def _mkldnn_rnn_layer(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    output, hidden, cell, workspace = _aten.mkldnn_rnn_layer.default(*args, **kwargs)
    shapes = tuple((tuple(a.shape), a.dtype) if isinstance(a, Tensor) else a for a in args if not isinstance(a, list))
    nbytes = _rnn_workspace(shapes, tuple(args[8]))
    return output, hidden, cell, workspace.new_empty(nbytes // workspace.element_size())


def _mkldnn_rnn_layer_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """As the meta function, which gives both biases one gradient."""
    *first, bias, same, hidden, cell = _aten.mkldnn_rnn_layer_backward.default(*args, **kwargs)
    return *first, bias, torch.empty_like(bias) if same is bias else same, hidden, cell


@lru_cache
def _rnn_workspace(described: tuple[Any, ...], batch_sizes: tuple[int, ...]) -> int:
    """Bytes that oneDNN keeps for the backward of one layer: its own answer, over at most 128 steps; then a line."""
    (steps, *shape), dtype = described[0]

    def ask(length: int) -> int:
        inputs = [((length, *shape), dtype), *described[1:]]
        real = [torch.zeros(a[0], dtype=a[1]) if isinstance(a, tuple) else a for a in inputs]
        out = _aten.mkldnn_rnn_layer.default(*real[:8], list(batch_sizes), *real[8:])
        return int(out[3].untyped_storage().nbytes())

    if steps <= _MOST_STEPS:
        return _outside_modes(ask, steps)
    half = _MOST_STEPS // 2
    most = _outside_modes(ask, _MOST_STEPS)
    return most + int(steps - _MOST_STEPS) * (most - _outside_modes(ask, half)) // half


def _outside_modes(function: Callable[[int], int], argument: int) -> int:
    """Call `function` where no dispatch mode is: in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        answer: int = pool.submit(function, argument).result()
        return answer


def _norm(func: Any, weight: int) -> Callable[..., tuple[Tensor, ...]]:
    """Normalisations whose kernel keeps statistics in the type of the weight, argument number `weight`."""

    def run(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        out, mean, deviation = func(*args, **kwargs)
        kind = args[weight].dtype if len(args) > weight and args[weight] is not None else mean.dtype
        return out, mean.to(kind), deviation.to(kind)

    return run


def _native_group_norm_backward(*args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
    """As the meta function, whose gradient has the type of the statistics; the kernel's has that of the input."""
    grad, *rest = _aten.native_group_norm_backward.default(*args, **kwargs)
    return None if grad is None else grad.to(args[1].dtype), *rest


def _grouped_mm(
    a: Tensor, b: Tensor, offs: Tensor | None = None, _bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """As the meta function, which refuses the types that only CPU kernels take."""
    groups = offs.shape[0] if offs is not None else a.shape[0]
    shapes = {
        (2, 2): (groups, a.shape[0], b.shape[-1]),
        (2, 3): (a.shape[0], b.shape[-1]),
        (3, 2): (a.shape[1], b.shape[-1]),
        (3, 3): (groups, a.shape[-2], b.shape[-1]),
    }
    return a.new_empty(shapes[a.dim(), b.dim()], dtype=out_dtype or a.dtype)


def _ctc_loss(
    log_probs: Tensor, _targets: Tensor, _lengths: object, target_lengths: list[int], *_: object
) -> tuple[Tensor, Tensor]:
    steps, batch, _classes = log_probs.shape
    return log_probs.new_empty(batch), log_probs.new_empty((batch, steps, 2 * max(target_lengths, default=0) + 1))


def _ctc_loss_backward(_grad: Tensor, log_probs: Tensor, *_: object) -> Tensor:
    return log_probs.new_empty(log_probs.shape)


BY_LENGTHS: dict[Any, tuple[int, Callable[..., Any]]] = {
    _aten._ctc_loss.default: (3, _ctc_loss),
    _aten._ctc_loss.Tensor: (3, _ctc_loss),
    _aten._ctc_loss_backward.default: (4, _ctc_loss_backward),
    _aten._ctc_loss_backward.Tensor: (4, _ctc_loss_backward),
    _aten._pack_padded_sequence.default: (1, pack),
}
"""Operators without a fake form, whose shapes hang on one list of lengths alone: its place, and the form."""


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    _aten.mse_loss.default: _loss(_aten.mse_loss.default),
    _aten.smooth_l1_loss.default: _loss(_aten.smooth_l1_loss.default),
    _aten.binary_cross_entropy.default: _loss(_aten.binary_cross_entropy.default),
    _aten.soft_margin_loss.default: _loss(_aten.soft_margin_loss.default),
    _aten.col2im.default: _col2im,
    _aten.native_layer_norm.default: _norm(_aten.native_layer_norm.default, 2),
    _aten.native_group_norm.default: _norm(_aten.native_group_norm.default, 1),
    _aten.native_group_norm_backward.default: _native_group_norm_backward,
    _aten.native_batch_norm.default: _norm(_aten.native_batch_norm.default, 1),
    _aten.mkldnn_rnn_layer.default: _mkldnn_rnn_layer,
    _aten.mkldnn_rnn_layer_backward.default: _mkldnn_rnn_layer_backward,
    **({_aten._grouped_mm.default: _grouped_mm} if hasattr(_aten, "_grouped_mm") else {}),
}
"""Operators whose fake form is mended, and how; each is called with the operator's own arguments."""
