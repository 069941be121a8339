"""`optimizer.state` and `optimizer.in_backward`: updates that an optimizer makes of one parameter at a time.

    state          moments: 16 bits -> float32 | the optimizer's own step, of this parameter | float32 -> 16 bits
    in_backward    loss.backward(): ... grad w2 | step of w2, grad = None | grad w1 | step of w1, grad = None
                   optimizer.step() does nothing any more

In float16 each moment is divided by a scale of its own, so that its largest entry is 2^15; in bfloat16 it is rounded to
8 bits, so that a second moment that is to fall by less than 0.2 % a step (a beta of 0.999) does not. Gradients that a
loop would clip are gone when it comes to that.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from dnnmem.estimator.passes.optimizer_states import MOMENTS, SCALE
from dnnmem.estimator.plan import Optimizer as Choice

_LARGEST, _LEAST = 2.0**15, 1e-30


def update_alone(optimizer: Optimizer, wanted: Choice) -> None:
    """Do to `optimizer` what `wanted` says of its states and of the moment of its updates."""
    if wanted.state is None and not wanted.in_backward:
        return
    alone = _Alone(optimizer, getattr(torch, wanted.state) if wanted.state else None)
    if wanted.in_backward:
        for group in optimizer.param_groups:
            for p in (p for p in group["params"] if p.requires_grad):
                p.register_post_accumulate_grad_hook(alone.update_and_drop(group))
    step = _nothing if wanted.in_backward else alone.step
    optimizer.step = MethodType(Optimizer.profile_hook_step(step), optimizer)  # type: ignore[method-assign]


def _nothing(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
    del optimizer
    return None if closure is None else closure()


class _Alone:
    """An optimizer that steps parameter by parameter."""

    def __init__(self, optimizer: Optimizer, dtype: torch.dtype | None) -> None:
        self._optimizer, self._dtype = optimizer, dtype
        whole = type(optimizer).step
        self._step: Callable[[Optimizer], Any] = getattr(whole, "__wrapped__", whole)  # without hooks: it is a part

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """All parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in list(optimizer.param_groups):
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def update_and_drop(self, group: dict[str, Any]) -> Callable[[Tensor], None]:
        """A hook for when a gradient of the group is there."""

        def hook(p: Tensor) -> None:
            self._update(p, group)
            p.grad = None

        return hook

    @torch.no_grad()
    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        optimizer = self._optimizer
        narrow = self._widen(p, optimizer.state[p]) if p in optimizer.state else {}
        groups = optimizer.param_groups
        optimizer.param_groups = [{**group, "params": [p]}]
        try:
            self._step(optimizer)
        finally:
            optimizer.param_groups = groups
        if self._dtype is not None:
            _round(optimizer.state[p], narrow, self._dtype)

    def _widen(self, p: Tensor, state: dict[str, Any]) -> dict[str, Tensor]:
        """Put moments in float32 into `state`; returns those that were there."""
        narrow = {}
        for name in MOMENTS:
            if name in state and state[name].dtype is self._dtype is not p.dtype:
                narrow[name] = state[name]
                state[name] = state[name].float()
                if name + SCALE in state:
                    _local(state[name]).mul_(state[name + SCALE])
        return narrow


def _round(state: dict[str, Any], narrow: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Put moments of 16 bits into `state`, where they were if they are in `narrow`."""
    for name in MOMENTS:
        wide = state.get(name)
        if wide is None or wide.dtype is not torch.float32:
            continue
        if name not in narrow:
            narrow[name] = torch.empty_like(wide, dtype=dtype)
        if dtype is torch.float16:
            scale = torch.linalg.vector_norm(_local(wide), torch.inf).div_(_LARGEST).clamp_(min=_LEAST)
            _local(wide).div_(scale)
            state[name + SCALE] = scale if name + SCALE not in state else state[name + SCALE].copy_(scale)
            del scale
        state[name] = narrow[name].copy_(wide)
        del wide


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
