"""Loss scaling for float16 (Micikevicius et al. 2018) without a word in the training loop; torch's GradScaler decides.

forward     outputs -> a branch of their own, so that a loss made of another output is not scaled twice
backward    gradient of an output * scale, in the output's own type;  at the end: gradients of parameters / scale
step        left out where a gradient is not finite; then the scale changes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import InternalError

_STEP, _BESIDE = "_dnnmem_unscaled_step", "_dnnmem_beside"
"""Attributes of an optimizer: its own step, and what is looked at in its place."""


class LossScaling:
    """Of one model and its optimizer."""

    def __init__(self, device_type: str) -> None:
        """`device_type`: where the parameters are."""
        self.scaler = torch.amp.GradScaler(device_type)
        """Holds the scale, and how it grows."""
        self._optimizer: Callable[[], Any] = lambda: None  # weak: it may hold the model
        self._in_backward = False

    @staticmethod
    def find(model: nn.Module) -> LossScaling:
        """That of `model`, or of what it wraps."""
        for module in model.modules():
            found = _OF_MODEL.get(module)
            if found is not None:
                return found
        raise InternalError("this model has no loss scaling; it is applied to the model before the optimizer")

    def enter(self, output: Tensor) -> Tensor:
        """An output in float32 whose gradient is scaled on its way into the model."""
        scaled: Tensor = _Scaled.apply(output, self)
        return scaled

    def scale(self, gradient: Tensor) -> Tensor:
        """The factor now, for a pass that ends with true gradients."""
        if not self._in_backward:
            self._in_backward = True
            self._again()
            engine = torch.autograd.Variable._execution_engine
            # twice: what ranks share is there only when their own callbacks, queued by then, are done
            engine.queue_callback(lambda: engine.queue_callback(self._unscale))
        return self.scaler.scale(gradient.new_ones((), dtype=torch.float32))

    def attach(self, optimizer: Optimizer) -> None:
        """Let `optimizer.step` be left out where gradients are not finite."""
        self._optimizer = ref(optimizer)
        step: Callable[..., Any] = optimizer.step
        optimizer.__dict__[_STEP] = step

        def scaled_step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            now = optimizer.step
            optimizer.step = step  # type: ignore[method-assign]
            try:
                result = self.scaler.step(self._optimizer(), *args, **kwargs)
            finally:
                optimizer.step = now  # type: ignore[method-assign]
            self.scaler.update()
            return result

        optimizer.step = MethodType(scaled_step, optimizer)  # type: ignore[method-assign]

    def look_at(
        self,
        optimizer: Optimizer,
        parameters: list[Tensor],
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        """Look at the gradients of `parameters` from now on, as the attached `optimizer` holds copies on the host.

        What is called in the place of its own `step` is that, put through `wrap`.
        """
        beside = _Beside([{"params": parameters}], wrap(optimizer.__dict__[_STEP]))
        optimizer.__dict__[_BESIDE] = beside
        self._optimizer = ref(beside)

    @torch.no_grad()
    def _unscale(self) -> None:
        self._in_backward = False
        optimizer = self._optimizer()
        if optimizer is not None:
            self.scaler.unscale_(optimizer)

    @torch.no_grad()
    def _again(self) -> None:
        """Another pass adds to gradients that have been unscaled: scale them again."""
        optimizer = self._optimizer()
        if optimizer is None or self.scaler._per_optimizer_states.pop(id(optimizer), None) is None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, self.scaler.get_scale())


@dataclass(eq=False)
class _Beside:
    """What torch's scaler takes for an optimizer."""

    param_groups: list[dict[str, Any]]
    step: Callable[..., Any]


_OF_MODEL: WeakKeyDictionary[nn.Module, LossScaling] = WeakKeyDictionary()


def scaling_of(model: nn.Module) -> LossScaling:
    """A scaling for `model`, which `LossScaling.find` finds again."""
    kind = next((p.device.type for p in model.parameters()), "cpu")
    return _OF_MODEL.setdefault(model, LossScaling(kind))


class _Scaled(torch.autograd.Function):
    """The output in float32; its gradient times the scale, in the output's type and without a copy between."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, scaling: LossScaling) -> Tensor:
        """See the class."""
        ctx.dtype, ctx.scaling = output.dtype, scaling
        return output.view_as(output) if output.dtype is torch.float32 else output.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """See the class."""
        scaled = torch.empty_like(gradient, dtype=ctx.dtype)
        torch.mul(gradient, ctx.scaling.scale(gradient), out=scaled)
        return scaled, None
