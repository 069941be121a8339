"""LAMB and LARS: updates whose length follows that of the weights, layer by layer, for large batches.

    LAMB    r = m' / (sqrt(v') + eps) + decay w      w = w - lr |w| / |r| r          You et al. 2020, algorithm 2
    LARS    r = g + decay w     b = mu b + lr trust |w| / (|g| + decay |w|) r        You et al. 2017, algorithm 1
            w = w - b

m' and v' are Adam's moments, with its correction of the first steps. Vectors (biases, scales of norms) keep the plain
length, as in both authors' own programs; so does a weight or an update of length 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dnnmem.profilers.optimizers.groups import Group, counted, lists, loss_of, states, trained


class Lamb(Optimizer):
    """Two states, `exp_avg` and `exp_avg_sq`; lists of tensors (foreach)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        """Args: as the paper's; its weight decay is decoupled, but counts for the length of the update."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for params, grads in lists(trained(group), _is_matrix):
                moments = states(self, params, "exp_avg"), states(self, params, "exp_avg_sq")
                _lamb(params, grads, moments, [float(t) for t in counted(self, params)], group)
        return loss


class Lars(Optimizer):
    """One state, `momentum_buffer`; lists of tensors (foreach)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        """Args: as the paper's; its weight decay passes through the gradients."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for params, grads in lists(trained(group), _is_matrix):
                _lars(params, grads, states(self, params, "momentum_buffer"), group)
        return loss


def _is_matrix(p: Tensor) -> bool:
    return p.ndim > 1


def _lamb(
    params: list[Tensor],
    grads: list[Tensor],
    moments: tuple[list[Tensor], list[Tensor]],
    steps: list[float],
    group: Group,
) -> None:
    (b1, b2), (m, v) = group["betas"], moments
    torch._foreach_lerp_(m, grads, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, grads, grads, 1 - b2)
    updates = torch._foreach_sqrt(v)
    torch._foreach_div_(updates, [(1 - b2**t) ** 0.5 for t in steps])
    torch._foreach_add_(updates, group["eps"])
    torch._foreach_reciprocal_(updates)
    torch._foreach_mul_(updates, m)
    torch._foreach_div_(updates, [1 - b1**t for t in steps])
    torch._foreach_add_(updates, params, alpha=group["weight_decay"])
    if _is_matrix(params[0]):
        lengths = torch.stack(torch._foreach_norm(params))
        _scale(updates, lengths, torch.stack(torch._foreach_norm(updates)))
    torch._foreach_add_(params, updates, alpha=-group["lr"])


def _lars(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], group: Group) -> None:
    decay = group["weight_decay"]
    updates = torch._foreach_add(grads, params, alpha=decay)
    if _is_matrix(params[0]):
        lengths = torch.stack(torch._foreach_norm(params))
        others = torch.stack(torch._foreach_norm(grads)).add_(lengths, alpha=decay)
        _scale(updates, lengths, others, group["trust"])
    torch._foreach_mul_(buffers, group["momentum"])
    torch._foreach_add_(buffers, updates, alpha=group["lr"])
    torch._foreach_add_(params, buffers, alpha=-1)


def _scale(updates: list[Tensor] | tuple[Tensor, ...], lengths: Tensor, others: Tensor, factor: float = 1.0) -> None:
    """Multiply each update by `factor` times the quotient of two lengths; by 1 where either is 0."""
    ratios = lengths.div(others).mul_(factor)
    ratios.masked_fill_(lengths.mul(others).eq_(0).bool(), 1.0)
    torch._foreach_mul_(updates, list(ratios.unbind()))
