"""Shampoo (Gupta, Koren & Singer 2018, algorithm 1): each side of a matrix has a preconditioner, a full matrix itself.

    L = L + g gt     R = R + gt g     w = w - lr L^(-1/4) g R^(-1/4)

A tensor of more dimensions is a matrix of its first and all others. A side longer than `longest` has none, and the
other then counts for two (-1/2). Roots are taken by eigenvalues, each `every` steps (Anil et al. 2020 do so as well).
Vectors have the diagonal form, which is AdaGrad's. Weight decay is decoupled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dnnmem.estimator.passes.optimizer_shampoo import EVERY, LONGEST
from dnnmem.profilers.optimizers.groups import Group, begin, counted, loss_of, trained


class Shampoo(Optimizer):
    """States `left`, `right` and their roots for matrices, `sum` for vectors; one parameter after the other."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        every: int = EVERY,
        longest: int = LONGEST,
    ) -> None:
        """Args: `eps` is what the diagonals of preconditioners begin with."""
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "every": every, "longest": longest}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does."""
        loss = loss_of(closure)
        begin(self, _states)
        for group in self.param_groups:
            for p in trained(group):
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if p.ndim > 1:
                    [count] = counted(self, [p])
                    _matrix(p, p.grad.flatten(1), self.state[p], group, int(count))
                else:
                    _vector(p, p.grad, self.state[p]["sum"], group)
        return loss


def _sides(shape: Sequence[int], group: Group) -> list[tuple[str, int]]:
    """Sides with a preconditioner, and their lengths."""
    return [(name, n) for name, n in zip(("left", "right"), shape, strict=True) if n <= group["longest"]]


def _states(p: Tensor, group: Group) -> dict[str, Tensor]:
    if p.ndim < 2:
        return {"sum": torch.zeros_like(p)}
    found: dict[str, Tensor] = {}
    for name, n in _sides(p.flatten(1).shape, group):
        found[name] = torch.eye(n, dtype=p.dtype, device=p.device).mul_(group["eps"])
        found[f"{name}_root"] = torch.empty_like(found[name])
    return found


def _matrix(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Group, count: int) -> None:
    sides = _sides(grad.shape, group)
    for name, _ in sides:
        other = grad if name == "left" else grad.T
        state[name].addmm_(other, other.T)
        if (count - 1) % group["every"] == 0:
            renew_root(state[f"{name}_root"], state[name], 2 * len(sides), group["eps"])
    update = grad
    for name, _ in sides:
        root = state[f"{name}_root"]
        update = root @ update if name == "left" else update @ root
    p.add_(update.view_as(p), alpha=-group["lr"])


def renew_root(root: Tensor, matrix: Tensor, order: int, least: float) -> None:
    """`root` = `matrix` ^ (-1 / order); eigenvalues are `least` and more."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_(min=least).pow_(-1 / order)
    torch.mm(vectors * values, vectors.T, out=root)


def _vector(p: Tensor, grad: Tensor, total: Tensor, group: Group) -> None:
    total.addcmul_(grad, grad)
    p.addcdiv_(grad, total.sqrt().add_(group["eps"]), value=-group["lr"])
