"""What optimizers here share: lists of parameters that one kernel can take, and AdamW for those that they leave out.

a group      hidden=True: matrices inside of the model, for which a method is made      hidden=False: AdamW's
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

Group = dict[str, Any]
"""One of an optimizer's `param_groups`."""


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure that `step` may be given computes; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def trained(group: Group) -> list[Tensor]:
    """Parameters that have gradients."""
    return [p for p in group["params"] if p.grad is not None]


def lists(
    params: Iterable[Tensor], key: Callable[[Tensor], Hashable] = lambda _: None
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Parameters and their gradients, by device, type and `key`: lists for `torch._foreach_*`."""
    found: dict[Hashable, list[Tensor]] = defaultdict(list)
    for p in params:
        found[p.device, p.dtype, key(p)].append(p)
    for some in found.values():
        yield some, [p.grad for p in some if p.grad is not None]


def begin(optimizer: Optimizer, make: Callable[[Tensor, Group], dict[str, Tensor]]) -> None:
    """Make all states before the first update, as torch's own optimizers do; in groups not `hidden` AdamW's."""
    for group in optimizer.param_groups:
        of_group = make if group.get("hidden", True) else _moments
        for p in trained(group):
            if not optimizer.state[p]:
                optimizer.state[p].update(of_group(p, group))


def _moments(p: Tensor, group: Group) -> dict[str, Tensor]:
    del group
    return {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def states(
    optimizer: Optimizer, params: Iterable[Tensor], name: str, layout: torch.memory_format = torch.preserve_format
) -> list[Tensor]:
    """A state of each parameter, zeros at first."""
    return [_state(optimizer, p, name, layout) for p in params]


def _state(optimizer: Optimizer, p: Tensor, name: str, layout: torch.memory_format) -> Tensor:
    mine = optimizer.state[p]
    if name not in mine:
        mine[name] = torch.zeros_like(p, memory_format=layout)
    state: Tensor = mine[name]
    return state


def counted(optimizer: Optimizer, params: Iterable[Tensor]) -> list[Tensor]:
    """The number of steps of each parameter, on the host, this one counted."""
    counters = []
    for p in params:
        counter = optimizer.state[p].setdefault("step", torch.tensor(0.0))
        counter += 1
        counters.append(counter)
    return counters


def update_others(optimizer: Optimizer, group: Group) -> None:
    """AdamW for a group (Loshchilov & Hutter 2019): torch's own, by its default kernel."""
    params = trained(group)
    if not params:
        return
    for p in params:
        optimizer.state[p].setdefault("step", torch.tensor(0.0))
    adamw(
        params, [p.grad for p in params if p.grad is not None],
        states(optimizer, params, "exp_avg"), states(optimizer, params, "exp_avg_sq"), [],
        [optimizer.state[p]["step"] for p in params],
        amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
        weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
    )  # fmt: skip
