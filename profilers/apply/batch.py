"""`batch`: several passes of a training loop make one optimizer step, without a word in the loop.

    loop        forward  backward  step  zero_grad | forward  backward  step  zero_grad | ...
    k = 2       forward  backward   -       -      | forward  backward  step  zero_grad

`step` and `zero_grad` act each k-th time. Gradients of the model's outputs are taken times 1 / k, so that their sum is
that of one batch of all samples where the loss is a mean; what a loss adds of parameters alone is not. Ranks with whole
gradients send them in the k-th backward pass only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.deferred_logits import Logits
from dnnmem.profilers.apply.sharding import sync_gradients
from dnnmem.profilers.tensors import map_tensors


def to_optimizer(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """`optimizer`, whose `step` and `zero_grad` act each `plan.batch.accumulation`-th time; hooks on `model`.

    Raises `UnsupportedError` for `keep_output=False`, which is the loop's own to do.
    """
    if not plan.batch.keep_output:
        raise UnsupportedError(
            "batch.keep_output=false cannot be applied: the training loop's own variable holds the model's output",
            hint="del output before loss.backward(), and leave batch.keep_output out",
        )
    if plan.batch.accumulation > 1:
        _Accumulation(optimizer, model, plan.batch.accumulation)
    return optimizer


class _Accumulation:
    """Counts the calls of `step`."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, count: int) -> None:
        self._count, self._calls, self._model = count, 0, model
        step: Callable[..., Any] = optimizer.step
        zero_grad: Callable[..., Any] = optimizer.zero_grad

        def each_step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            return None if self._calls % count else step(*args, **kwargs)

        def each_zero_grad(_: Optimizer, *args: Any, **kwargs: Any) -> None:
            if self._calls % count == 0:
                zero_grad(*args, **kwargs)

        optimizer.step = MethodType(each_step, optimizer)  # type: ignore[method-assign]
        optimizer.zero_grad = MethodType(each_zero_grad, optimizer)  # type: ignore[method-assign]
        model.register_forward_pre_hook(self._enter, prepend=True)
        model.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: Any) -> None:
        del args
        sync_gradients(module, (self._calls + 1) % self._count == 0)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        del module, args
        return map_tensors(output, self._share)

    def _share(self, output: Tensor) -> Tensor:
        if not (output.requires_grad and output.is_floating_point()):
            return output
        if isinstance(output, Logits):
            return output.sharing(1 / self._count)
        shared: Tensor = _Share.apply(output, 1 / self._count)
        return shared


class _Share(torch.autograd.Function):
    """The output; its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, factor: float) -> Tensor:
        """See the class."""
        ctx.factor = factor
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """See the class."""
        return gradient * ctx.factor, None
