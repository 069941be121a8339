"""Lion (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2): the sign of a moving average.

    u = sign(b1 m + (1 - b1) g)     m = b2 m + (1 - b2) g     w = w - lr (u + decay w)

One state; temporaries as large as the parameters. Its updates are larger than AdamW's: the paper takes a learning rate
3 to 10 times smaller, and a weight decay as much larger.

>>> w = torch.nn.Parameter(torch.ones(2))
>>> optimizer = Lion([w], lr=0.1)
>>> w.grad = torch.tensor([3.0, -0.5])
>>> optimizer.step()
>>> w.detach()
tensor([0.9000, 1.1000])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dnnmem.profilers.optimizers.groups import Group, lists, loss_of, states, trained


class Lion(Optimizer):
    """One state, `exp_avg`; lists of tensors (foreach)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        """Args: as the paper's; its weight decay is decoupled."""
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for params, grads in lists(trained(group)):
                _update(params, grads, states(self, params, "exp_avg"), group)
        return loss


def _update(params: list[Tensor], grads: list[Tensor], moments: list[Tensor], group: Group) -> None:
    b1, b2 = group["betas"]
    updates = torch._foreach_mul(moments, b1)
    torch._foreach_add_(updates, grads, alpha=1 - b1)
    torch._foreach_sign_(updates)
    torch._foreach_lerp_(moments, grads, 1 - b2)
    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(params, updates, alpha=-group["lr"])
