"""Cross entropy of some rows at a time: log-probabilities, and with `fused` the logits too, never exist whole.

chunked   logits (n, v) saved    forward: losses of r rows after r rows    backward: their gradients, into one (n, v)
fused     hidden (n, d) @ weight (v, d)    forward: logits of r rows, their losses, and at once the gradients of hidden
          and weight that follow from them; the backward pass multiplies these by what comes in

The gradient of a cross entropy needs nothing that comes later but one factor, so that it can be made with the loss: as
in Liger Kernel (Hsu et al. 2024), here in plain torch. Losses and gradients of logits are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dnnmem.estimator.errors import UnsupportedError


class Rows(NamedTuple):
    """What is wanted of each row."""

    targets: Tensor
    """(n, 1): its class."""
    scales: Tensor
    """(n, 1) in float32: what its loss counts; 0 for a row that is ignored."""
    share: float
    """What gradients count besides: 1 / micro-batches."""
    chunks: int
    """In how many pieces the rows are taken."""

    def slices(self) -> Iterator[slice]:
        """The pieces."""
        step = max(1, -(-len(self.targets) // self.chunks))
        return (slice(at, at + step) for at in range(0, len(self.targets), step))


def rows_of(targets: Tensor, *, ignore_index: int, reduction: str, share: float, chunks: int) -> Rows:
    """What `functional.cross_entropy` wants of rows with these classes; `reduction` is `mean` or `sum`."""
    valid = targets != ignore_index
    scales = valid.float()
    if reduction == "mean":
        scales /= scales.sum()
    return Rows(targets.masked_fill(~valid, 0)[:, None], scales[:, None], share, chunks)


def _losses(logits: Callable[[slice], Tensor], rows: Rows, at: slice, *, wants_gradient: bool) -> tuple[Tensor, Tensor]:
    """The loss of some rows, and the gradient of their logits in float32 (else their log-probabilities)."""
    found = logits(at).float()
    found = functional.log_softmax(found, 1)
    targets, scales = rows.targets[at], rows.scales[at]
    loss = found.gather(1, targets).mul_(scales).sum().neg_()
    if wants_gradient:
        found.exp_().scatter_add_(1, targets, torch.full_like(scales, -1.0)).mul_(scales)
        if rows.share != 1:
            found.mul_(rows.share)
    return loss, found


class Chunked(torch.autograd.Function):
    """(n, v) logits to their loss."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Rows) -> Tensor:
        """See the module."""
        ctx.save_for_backward(logits)
        ctx.rows = rows
        total = torch.zeros((), device=logits.device)
        for at in rows.slices():
            total += _losses(logits.__getitem__, rows, at, wants_gradient=False)[0]
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """See the module."""
        (logits,) = ctx.saved_tensors
        found = torch.empty_like(logits)
        for at in ctx.rows.slices():
            torch.mul(_losses(logits.__getitem__, ctx.rows, at, wants_gradient=True)[1], gradient, out=found[at])
        return found, None


class Fused(torch.autograd.Function):
    """(n, d) hidden states and the head's matrix (v, d), its bias or None, to the loss."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
        """See the module."""
        factor = weight.to(hidden.dtype)
        added = None if bias is None else bias.to(hidden.dtype)
        grads = [
            torch.zeros_like(x) if x is not None and needed else None
            for x, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        total = torch.zeros((), device=hidden.device)
        for at in rows.slices():
            loss, gradient = _losses(
                lambda at: functional.linear(hidden[at], factor, added), rows, at, wants_gradient=True
            )
            total += loss
            gradient = gradient.to(hidden.dtype)
            _add_gradients(grads, gradient, hidden[at], factor, at)
            del gradient
        ctx.grads = grads
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """See the module. Raises `UnsupportedError` when it is run twice."""
        if ctx.grads is None:
            raise UnsupportedError(
                "the backward pass runs twice through a fused loss, which keeps its gradients for one",
                hint="--set loss.fused=false",
            )
        grads, ctx.grads = ctx.grads, None
        for g in grads:
            if g is not None:
                g.mul_(gradient)
        return (*grads, None)


def _add_gradients(grads: list[Tensor | None], gradient: Tensor, hidden: Tensor, factor: Tensor, at: slice) -> None:
    """What some rows' gradient of logits adds to those of hidden states, matrix and bias."""
    of_hidden, of_weight, of_bias = grads
    if of_hidden is not None:
        torch.mm(gradient, factor, out=of_hidden[at])
    if of_weight is not None and of_weight.dtype is gradient.dtype:
        of_weight.addmm_(gradient.t(), hidden)
    elif of_weight is not None:
        of_weight.add_(gradient.t() @ hidden)
    if of_bias is not None:
        of_bias.add_(gradient.sum(0))
