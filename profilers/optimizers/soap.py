"""SOAP (Vyas et al. 2024, algorithm 3): Adam in the eigenbases of Shampoo's preconditioners.

    G = Qlt g Qr     M = Qlt m Qr     v = b2 v + (1 - b2) G G     w = w - lr Ql (M' / (sqrt(v') + eps)) Qrt
    L = b L + (1 - b) g gt     R = b R + (1 - b) gt g             each `every` steps: Ql = QR(L Ql), Qr = QR(R Qr)

As in the authors' program the first step makes bases alone (by eigenvalues), a side longer than `longest` has none, and
vectors are Adam's. A tensor of more dimensions is a matrix of its first and all others. Weight decay is decoupled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dnnmem.estimator.passes.optimizer_shampoo import EVERY, LONGEST
from dnnmem.profilers.optimizers.groups import Group, begin, counted, loss_of, trained


class Soap(Optimizer):
    """Two moments, `left`, `right` and their bases; one parameter after the other."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        every: int = EVERY,
        longest: int = LONGEST,
    ) -> None:
        """Args: preconditioners are averaged by the second of `betas`."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "every": every, "longest": longest})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` does."""
        loss = loss_of(closure)
        begin(self, _states)
        for group in self.param_groups:
            params = trained(group)
            for p, count in zip(params, counted(self, params), strict=True):
                if p.grad is not None:
                    _update(p, p.grad, self.state[p], group, int(count))
        return loss


def _update(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Group, count: int) -> None:
    flat = grad.flatten(1) if p.ndim > 1 else grad
    sides = _sides(flat.shape, group["longest"]) if p.ndim > 1 else []
    if sides and count == 1:
        _begin(flat, state, sides, group)
        return
    _step(p, flat, state, group, count - bool(sides))  # the first step has moved nothing
    _collect(flat, state, sides, group)
    if count % group["every"] == 0:
        _renew(state, sides)


def _sides(shape: Sequence[int], longest: int) -> list[str]:
    """Names of sides with a preconditioner."""
    return [name for name, n in zip(("left", "right"), shape, strict=True) if n <= longest]


def _states(p: Tensor, group: Group) -> dict[str, Tensor]:
    """Moments, and an average with its basis for each side."""
    found = {name: torch.zeros_like(p, memory_format=torch.contiguous_format) for name in ("exp_avg", "exp_avg_sq")}
    flat = p.flatten(1) if p.ndim > 1 else p
    for name in _sides(flat.shape, group["longest"]) if p.ndim > 1 else []:
        n = flat.shape[0 if name == "left" else 1]
        found[name], found[f"{name}_basis"] = p.new_zeros(n, n), p.new_empty(n, n)
    return found


def _begin(grad: Tensor, state: dict[str, Tensor], sides: Sequence[str], group: Group) -> None:
    for name in sides:
        other = grad if name == "left" else grad.T
        torch.mm(other, other.T, out=state[name]).mul_(1 - group["betas"][1])
        state[f"{name}_basis"].copy_(torch.linalg.eigh(state[name]).eigenvectors.flip(1))


def _step(p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Group, count: int) -> None:
    """Adam's, between two rotations."""
    b1, b2 = group["betas"]
    m, v = (state[name].view_as(grad) for name in ("exp_avg", "exp_avg_sq"))
    m.lerp_(grad, 1 - b1)
    rotated = _rotated(grad, state)
    v.mul_(b2).addcmul_(rotated, rotated, value=1 - b2)
    rotated = v.sqrt().add_(group["eps"])
    update = _rotated(_rotated(m, state).div(rotated), state, back=True)
    p.mul_(1 - group["lr"] * group["weight_decay"])
    p.add_(update.view_as(p), alpha=-group["lr"] * (1 - b2**count) ** 0.5 / (1 - b1**count))


def _rotated(matrix: Tensor, state: dict[str, Tensor], *, back: bool = False) -> Tensor:
    """Into the eigenbases, or out of them; the tensor itself where there are none."""
    if "left" in state:
        left = state["left_basis"]
        matrix = (left if back else left.T) @ matrix
    if "right" in state:
        right = state["right_basis"]
        matrix = matrix @ (right.T if back else right)
    return matrix


def _collect(grad: Tensor, state: dict[str, Tensor], sides: Sequence[str], group: Group) -> None:
    """Averages of products."""
    b = group["betas"][1]
    for name in sides:
        other = grad if name == "left" else grad.T
        state[name].addmm_(other, other.T, beta=b, alpha=1 - b)


def _renew(state: dict[str, Tensor], sides: Sequence[str]) -> None:
    """The bases: one power iteration, sorted by eigenvalues."""
    for name in sides:
        basis, v = state[f"{name}_basis"], state["exp_avg_sq"].flatten(1)
        product = state[name] @ basis
        order = torch.argsort((basis * product).sum(0), descending=True)
        v.copy_(v.index_select(0 if name == "left" else 1, order))
        basis.copy_(torch.linalg.qr(product.index_select(1, order)).Q)
