"""Recurrent layers as on CUDA: one operator of cuDNN for all layers, directions and steps, its weights in one block.

Follows torch's aten/src/ATen/native/RNN.cpp (the choice), native/cudnn/RNN.cpp and cudnn/AutocastRNN.cpp.

    lstm, gru, rnn_tanh, rnn_relu    ->  _cudnn_rnn; its operators' sizes are in recurrent_operators.py
    flatten_parameters               ->  the weights move into one block; else each call copies them into a new one
    under autocast                   ->  float16, whatever type was asked for: each call copies the weights
    dropout between layers           ->  states of random numbers, made by the first call and kept
    lstm_cell, gru_cell              ->  recurrent_cells.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dnnmem.profilers.fake_kernels import REPLACEMENTS
from dnnmem.profilers.rules.autocast import without_autocast
from dnnmem.profilers.rules.dispatch import Kernels, kernels, operator
from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.recurrent_cells import CELL_REPLACEMENTS, cuda_cells
from dnnmem.profilers.rules.recurrent_operators import RECURRENT_REPLACEMENTS, network
from dnnmem.profilers.rules.recurrent_sizes import GRU, LSTM, RELU, TANH, Network, dropout_bytes, elements, places

_aten = torch.ops.aten
_MODES = {"rnn_relu": RELU, "rnn_tanh": TANH, "lstm": LSTM, "gru": GRU}
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_FLATTENED = (torch.float64, torch.float32, torch.float16)
"""What `flatten_parameters` takes, `torch.backends.cudnn.CUDNN_TENSOR_DTYPES`."""
_BFLOAT16 = 91300
"""The first cuDNN whose recurrent networks take bfloat16; torch gives it to them from 2.10 on."""


class _Cudnn:
    """What the calls of one run share."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._states: Tensor | None = None

    def takes(self, x: Tensor) -> bool:
        """`cudnn_is_acceptable`; a tensor with memory behind it has no fake operator."""
        if not isinstance(x, FakeTensor) or not torch.backends.cudnn.enabled or not x.numel():
            return False
        setup = self._gpu.setup
        return x.dtype is not torch.bfloat16 or (setup.torch >= (2, 10, 0) and setup.cudnn >= _BFLOAT16)

    def states(self, like: Tensor, dropout: float) -> Tensor | None:
        """States of dropout's random numbers, made when it is first asked for: `get_dropout_state`."""
        if self._states is None and dropout > 0:
            self._states = torch.empty(dropout_bytes(self._gpu), dtype=torch.uint8, device=like.device)
        return self._states


@contextmanager
def cuda_recurrent(gpu: Gpu) -> Iterator[None]:
    """Let fake recurrent layers be cuDNN's until the context ends."""
    with (
        kernels(_kernels(_Cudnn(gpu))),
        cuda_cells(),
        patch.dict(REPLACEMENTS, {**RECURRENT_REPLACEMENTS, **CELL_REPLACEMENTS}),
        patch.object(nn.RNNBase, "flatten_parameters", _flatten_parameters),
    ):
        yield


def _kernels(cudnn: _Cudnn) -> Kernels:
    made: dict[tuple[str, str], Callable[..., Any]] = {}
    for name, mode in _MODES.items():
        for overload, run in (("input", _padded), ("data", _packed)):
            full = f"aten::{name}.{overload}"
            kernel = run(operator(full), cudnn, partial(_call, mode, cudnn))
            made.update(dict.fromkeys([(full, "AutogradCPU"), (full, "CPU")], kernel))
    return made


def _padded(own: Any, cudnn: _Cudnn, call: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    def run(  # noqa: PLR0917 - the operator's own signature
        x: Tensor,
        hidden: Any,
        weights: Sequence[Tensor],
        biases: bool,  # noqa: FBT001
        layers: int,
        dropout: float,
        train: bool,  # noqa: FBT001
        bidirectional: bool,  # noqa: FBT001
        batch_first: bool,  # noqa: FBT001
    ) -> tuple[Tensor, ...]:
        if not cudnn.takes(x):
            plain: tuple[Tensor, ...] = own._op_dk(
                _COMPOSITE, x, hidden, weights, biases, layers, dropout, train, bidirectional, batch_first
            )
            return plain
        options: Any = layers, batch_first, dropout, train, bidirectional, []
        result: tuple[Tensor, ...] = call(x, hidden, list(weights), options, biases=biases)
        return result

    return run


def _packed(own: Any, cudnn: _Cudnn, call: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    def run(  # noqa: PLR0917 - the operator's own signature
        x: Tensor,
        batch_sizes: Tensor,
        hidden: Any,
        weights: Sequence[Tensor],
        biases: bool,  # noqa: FBT001
        layers: int,
        dropout: float,
        train: bool,  # noqa: FBT001
        bidirectional: bool,  # noqa: FBT001
    ) -> tuple[Tensor, ...]:
        if not cudnn.takes(x):
            plain: tuple[Tensor, ...] = own._op_dk(
                _COMPOSITE, x, batch_sizes, hidden, weights, biases, layers, dropout, train, bidirectional
            )
            return plain
        options: Any = layers, False, dropout, train, bidirectional, batch_sizes.tolist()
        result: tuple[Tensor, ...] = call(x, hidden, list(weights), options, biases=biases)
        return result

    return run


def _call(  # noqa: PLR0917 - what is known before a call, and the call
    mode: int, cudnn: _Cudnn, x: Tensor, hidden: Any, weights: list[Tensor], options: Any, *, biases: bool
) -> tuple[Tensor, ...]:
    """`_cudnn_impl`, and `_cudnn_rnn_cast_reflatten` under autocast."""
    layers, _, dropout, train, bidirectional, _ = options
    hx, cx = hidden if mode == LSTM else (hidden, None)
    state = (cx if cx is not None else hx).shape[2]
    projection = hx.shape[2] if hx.shape[2] != state else 0
    it = network(x, mode, state, projection, layers, bidirectional=bidirectional)
    block = _block_of(weights, it, biases=biases)
    kept = cudnn.states(x, dropout if train else 0.0)
    casts = torch._C.is_autocast_enabled("cpu")
    with without_autocast():
        if casts:
            block, weights = _cast_weights(block, weights, it, biases=biases)
            cx, hx, x = (_half(t) for t in (cx, hx, x))
        stride = (4 if biases else 2) + bool(projection)
        out = _aten._cudnn_rnn.default(x, weights, stride, block, hx, cx, mode, state, projection, *options, kept)
    return tuple(out[:3]) if mode == LSTM else tuple(out[:2])


def _block_of(weights: list[Tensor], it: Network, *, biases: bool) -> Tensor | None:
    """The one block that all weights lie in, each at its place; None if they do not: `try_get_weight_buf`."""
    first = weights[0]
    storage = first.untyped_storage()
    if storage.nbytes() < elements(it) * first.element_size():
        return None
    lie = all(w.untyped_storage()._cdata == storage._cdata and w.dtype is first.dtype for w in weights)
    if not lie or [w.storage_offset() for w in weights] != places(it, biases=biases):
        return None
    return first.detach().as_strided((elements(it),), (1,), 0)


def _cast_weights(
    block: Tensor | None, weights: list[Tensor], it: Network, *, biases: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The weights in float16, in a block of their own; autograd sees the copies."""
    if weights[0].dtype in {torch.float16, torch.float64}:
        return block, weights
    made = torch.zeros(elements(it), dtype=torch.float16, device=weights[0].device)
    copied = []
    for part, weight in zip(_views(made, weights, it, biases=biases), weights, strict=True):
        copied.append(part.detach().copy_(weight))
    return made, copied


def _half(tensor: Any) -> Any:
    if tensor is None or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(torch.float16)


def _views(block: Tensor, weights: Sequence[Tensor], it: Network, *, biases: bool) -> list[Tensor]:
    """The weights' places in a block."""
    where = places(it, biases=biases)
    return [block[i : i + w.numel()].view(w.shape) for i, w in zip(where, weights, strict=True)]


def _flatten_parameters(self: nn.RNNBase) -> None:
    """Put the weights into one block, as torch's own does on a GPU that has cuDNN."""
    weights = [w for w in self._flat_weights if isinstance(w, FakeTensor) and w.device.type == "cpu"]
    if len(weights) != len(self._flat_weights_names) or not torch.backends.cudnn.enabled:
        return
    apart = {(w.untyped_storage()._cdata, w.storage_offset()) for w in weights}
    if (
        {w.dtype for w in weights} - {weights[0].dtype}
        or weights[0].dtype not in _FLATTENED
        or len(apart) < len(weights)
    ):
        return
    wide = self.hidden_size, self.proj_size or self.hidden_size
    mode = {"LSTM": LSTM, "GRU": GRU, "RNN_TANH": TANH, "RNN_RELU": RELU}[self.mode]
    it = Network(
        mode=mode,
        input=self.input_size,
        hidden=wide[0],
        output=wide[1],
        layers=self.num_layers,
        directions=1 + bool(self.bidirectional),
    )
    with torch.no_grad():
        block = torch.zeros(elements(it), dtype=weights[0].dtype, device=weights[0].device)
        for part, weight in zip(_views(block, weights, it, biases=self.bias), weights, strict=True):
            weight.data = part.copy_(weight)
