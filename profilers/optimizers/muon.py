"""Muon (Jordan et al. 2024): the momentum of a hidden matrix, made orthogonal; AdamW for all other parameters.

    b = mu b + (1 - mu) g     u = (1 - mu) g + mu b     X = u / |u|
    five times: A = X Xt, X = a X + (b A + c A A) X     w = (1 - lr decay) w - lr 0.2 sqrt(longer side) X

The iteration of Newton and Schulz runs in bfloat16 on the shorter side. As `torch.optim.Muon` (2.9 and later) with
`adjust_lr_fn="match_rms_adamw"` (Liu et al. 2025), which gives updates of AdamW's size, so that its learning rate may
stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dnnmem.estimator.passes.optimizer_muon import ITERATIONS
from dnnmem.profilers.optimizers.groups import Group, begin, loss_of, trained, update_others

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan's polynomial."""


class Muon(Optimizer):
    """One state, `momentum_buffer`, of matrices in groups with `hidden`; others are AdamW's."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        """Args: `betas` and `eps` are AdamW's; weight decay is decoupled."""
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "hidden": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does."""
        loss = loss_of(closure)
        begin(self, lambda p, _: {"momentum_buffer": torch.zeros_like(p)})
        for group in self.param_groups:
            if not group["hidden"]:
                update_others(self, group)
                continue
            params = trained(group)
            for p, buffer in zip(params, (self.state[p]["momentum_buffer"] for p in params), strict=True):
                if p.grad is not None:
                    _update(p, p.grad, buffer, group)
        return loss


def _update(p: Tensor, grad: Tensor, buffer: Tensor, group: Group) -> None:
    lr, momentum = group["lr"], group["momentum"]
    buffer.lerp_(grad, 1 - momentum)
    update = orthogonal(grad.lerp(buffer, momentum))
    p.mul_(1 - lr * group["weight_decay"])
    p.add_(update, alpha=-lr * 0.2 * max(p.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the orthogonal matrix next to `matrix`, in bfloat16: its singular values are between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    x.div_(x.norm().clamp(min=1e-7))
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
