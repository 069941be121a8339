"""What cuDNN's two recurrent operators give in a fake run, and what they allocate inside.

Follows `_cudnn_rnn`, `_cudnn_rnn_backward_input` and `_cudnn_rnn_backward_weight` in torch's
aten/src/ATen/native/cudnn/RNN.cpp, event by event:

    forward             +x' +output +hy +cy (+weights) +workspace +reserve -workspace -x'
    backward of input   +x' +dy' +dx +dhx +dcx +workspace -workspace -dy' -x'
    backward of weights +x' +dw +workspace -workspace -x'            x', dy': copies, where they are not contiguous
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.needs import Find, Needs
from dnnmem.profilers.rules.recurrent_sizes import Network, elements, places, reserve_bytes, workspace_bytes
from dnnmem.profilers.rules.temporaries_kernels import copies, nbytes

_aten = torch.ops.aten


def network(x: Tensor, mode: int, hidden: int, projection: int, layers: int, *, bidirectional: bool) -> Network:
    """The layers that read `x`; `projection`: 0 for none."""
    return Network(
        mode=mode,
        input=x.shape[-1],
        hidden=hidden,
        output=projection or hidden,
        layers=layers,
        directions=1 + bool(bidirectional),
    )


class _Call(NamedTuple):
    """What both operators are told of the layers."""

    it: Network
    x: Tensor
    batch_first: bool
    train: bool
    batch_sizes: Sequence[int]

    @property
    def steps(self) -> int:
        """Length of the longest sequence."""
        return len(self.batch_sizes) or int(self.x.shape[1 if self.batch_first else 0])

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return self.batch_sizes[0] if self.batch_sizes else int(self.x.shape[0 if self.batch_first else 1])

    @property
    def workspace(self) -> int:
        """Bytes while the call runs."""
        return workspace_bytes(self.it, batch=self.batch, element_bytes=self.x.element_size())

    def by_steps(self, tensor: Tensor) -> Tensor:
        """A tensor in the order in which cuDNN wants it: step by step."""
        return tensor.transpose(0, 1) if self.batch_first and not self.batch_sizes else tensor


def _call(x: Tensor, options: Sequence[Any]) -> _Call:
    """`options`: the operator's arguments from `mode` to `batch_sizes`."""
    mode, hidden, projection, layers, batch_first, _, train, bidirectional, batch_sizes = options
    it = network(x, mode, hidden, projection, layers, bidirectional=bidirectional)
    return _Call(it, x, bool(batch_first), bool(train), list(batch_sizes))


def _forward(
    x: Tensor, _weights: Sequence[Tensor], _stride: int, block: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    hx, cx, *options = rest
    call = _call(x, options[:9])
    wide = call.it.output * call.it.directions
    rows = [x.shape[0]] if call.batch_sizes else [call.steps, call.batch]
    block = x.new_empty(elements(call.it)) if block is None else block
    kept = reserve_bytes(call.it, steps=call.steps, batch=call.batch, element_bytes=x.element_size())
    return (
        call.by_steps(x.new_empty([*rows, wide])),
        torch.empty_like(hx),
        torch.empty_like(cx) if cx is not None else hx.new_empty(0),
        x.new_empty(kept if call.train else 0, dtype=torch.uint8),
        block,
    )


def _backward(x: Tensor, weights: Sequence[Tensor], _stride: int, block: Tensor, *rest: Any) -> tuple[Any, ...]:
    hx, cx, _, *gradients = rest[:6]
    call = _call(x, rest[6:15])
    if all(gradient is None for gradient in gradients):
        return None, None, None, [None for _ in weights]
    if not call.train:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")
    of_x = call.by_steps(torch.empty_like(call.by_steps(x), memory_format=torch.contiguous_format))
    of_states = torch.empty_like(hx), torch.empty_like(cx) if cx is not None else None
    of_weights = _weight_gradients(weights, block, call.it) if rest[17][3] else []
    return of_x, *of_states, of_weights


def _weight_gradients(weights: Sequence[Tensor], block: Tensor, it: Network) -> list[Tensor]:
    """Parts of one block; of their own where the program has no biases and cuDNN has."""
    if not _has_biases(weights):
        return [torch.empty_like(weight) for weight in weights]
    made = torch.zeros_like(block)
    where = places(it, biases=True)
    return [made[i : i + w.numel()].view(w.shape) for i, w in zip(where, weights, strict=True)]


def _has_biases(weights: Sequence[Tensor]) -> bool:
    return any(weight.dim() == 1 for weight in weights)


def _forward_needs(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    call = _call(args[0], args[6:15])
    made = [out[0], out[1], out[2], *([out[4]] if args[3] is None else [])]
    parts = [Needs() for tensor in made if tensor.numel()]
    workspace = (call.workspace,)
    if call.train:
        return Needs(
            before=copies(call.by_steps(call.x)),
            outputs=[*parts, Needs(before=workspace)],
            order=(*range(len(parts) - 1), len(parts), len(parts) - 1) if args[3] is None else (),
        )
    return Needs(before=(*copies(call.by_steps(call.x)),), during=[workspace])


def _backward_needs(_gpu: Gpu, args: Any, _kwargs: Any, out: Any) -> Needs:
    x, weights, block, hx, cx, output = (args[i] for i in (0, 1, 3, 4, 5, 6))
    gradient, of_hidden, of_cell = args[7:10]
    call = _call(x, args[10:19])
    if out[0] is None:
        return Needs()
    missing = [t for t, g in ((output, gradient), (hx, of_hidden), (cx, of_cell)) if g is None and t is not None]
    x, dy = call.by_steps(x), call.by_steps(output if gradient is None else gradient)
    inputs = Needs(before=copies(x, dy), during=[(call.workspace,)], count=2 + (cx is not None))
    parts = [inputs]
    if out[3]:
        if _has_biases(weights):
            parts.append(Needs(before=copies(x), during=[(call.workspace,)]))
        else:
            parts.append(Needs(before=(*copies(x), nbytes(block), call.workspace), count=len(out[3])))
    return Needs(before=(*(nbytes(t) for t in missing), *copies(of_hidden, of_cell)), outputs=parts)


RECURRENT_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    _aten._cudnn_rnn.default: _forward,
    _aten._cudnn_rnn_backward.default: _backward,
}
"""What the two operators give in a fake run."""

TEMPORARIES: dict[Any, Find] = {
    _aten._cudnn_rnn.default: _forward_needs,
    _aten._cudnn_rnn_backward.default: _backward_needs,
}
"""What the two operators need inside."""
