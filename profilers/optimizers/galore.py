"""GaLore (Zhao et al. 2024, algorithm 2): Adam on projections of hidden matrices' gradients; AdamW for others.

    r <= c    P = the first `rank` left singular vectors of g      G = Pt g      w = w - lr scale P adam(G)
    r > c     P = the right ones                                   G = g P       w = w - lr scale adam(G) Pt

Moments have `rank` rows or columns. Each `every` steps P is taken anew from the gradient, and moments stay, as in the
authors' program; so do its `scale` of 0.25 and decoupled weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dnnmem.estimator.passes.optimizer_galore import EVERY, RANK
from dnnmem.profilers.optimizers.groups import Group, begin, counted, loss_of, trained, update_others


class GaLore(Optimizer):
    """States `projection`, `exp_avg` and `exp_avg_sq` of matrices in groups with `hidden`; others are AdamW's."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int = RANK,
        every: int = EVERY,
        scale: float = 0.25,
    ) -> None:
        """Args: `scale` of the updates of projected matrices."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "rank": rank, "every": every, "scale": scale, "hidden": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does."""
        loss = loss_of(closure)
        begin(self, _states)
        for group in self.param_groups:
            if not group["hidden"]:
                update_others(self, group)
                continue
            params = trained(group)
            for p, count in zip(params, counted(self, params), strict=True):
                if p.grad is not None:
                    _update(p, p.grad, self.state[p], group, int(count))
        return loss


def _states(p: Tensor, group: Group) -> dict[str, Tensor]:
    short, rank = min(p.shape), min(group["rank"], *p.shape)
    low = (rank, p.shape[1]) if p.shape[0] <= p.shape[1] else (p.shape[0], rank)
    return {"projection": p.new_empty(short, rank), "exp_avg": p.new_zeros(low), "exp_avg_sq": p.new_zeros(low)}


def _update(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Group, count: int) -> None:
    (b1, b2), wide = group["betas"], grad.shape[0] <= grad.shape[1]
    if (count - 1) % group["every"] == 0:
        _renew(state["projection"], grad, wide=wide)
    projection = state["projection"]
    low = projection.T @ grad if wide else grad @ projection
    m, v = state["exp_avg"], state["exp_avg_sq"]
    m.lerp_(low, 1 - b1)
    v.mul_(b2).addcmul_(low, low, value=1 - b2)
    torch.div(m, v.sqrt().add_(group["eps"]), out=low)
    update = projection @ low if wide else low @ projection.T
    p.mul_(1 - group["lr"] * group["weight_decay"])
    p.add_(update, alpha=-group["lr"] * group["scale"] * (1 - b2**count) ** 0.5 / (1 - b1**count))


def _renew(projection: Tensor, grad: Tensor, *, wide: bool) -> None:
    """Singular vectors of the short side, in float32; the matrix is decomposed standing, which takes less room."""
    right: Tensor = torch.linalg.svd((grad.T if wide else grad).float(), full_matrices=False).Vh
    projection.copy_(right[: projection.shape[1]].T)
