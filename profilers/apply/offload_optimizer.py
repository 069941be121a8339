"""`offload.optimizer`: the optimizer works on copies of the parameters in the host's memory, its states beside them.

    step        host.grad <- p.grad     update of the copies     p <- copy          pinned memory where there is a GPU
    zero_grad   p.grad = None; the host's gradients stay, as room for the next

Gradients stay on the GPU until `zero_grad`, so that a loop may clip them before `step`. FSDP2's parts are copied each
by its rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.loss_scaling import LossScaling
from dnnmem.profilers.apply.offload_disk import with_states_in_files
from dnnmem.profilers.apply.offload_parameters import streamed_parameters


def to_optimizer(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """`optimizer` over copies on the host; its `param_groups` hold these.

    Raises `UsageError` where it has made steps already.
    """
    if not plan.offload.optimizer:
        return optimizer
    if optimizer.state:
        raise UsageError(
            f"the optimizer holds states of {len(optimizer.state)} parameters already",
            hint="apply the plan before the first step; load states afterwards",
        )
    there = streamed_parameters(model)
    if plan.offload.parameters and plan.splits_parameters:
        there = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = optimizer
    if isinstance(optimizer, ZeroRedundancyOptimizer):  # which sends what its groups hold: not the copies
        own = optimizer.optim
        own.param_groups = [dict(group) for group in own.param_groups]
    pairs = [pair for group in own.param_groups for pair in _to_host(group, there)]
    wrap = partial(with_states_in_files, optimizer=own) if plan.offload.disk else _as_it_is
    if plan.precision.compute == "fp16_amp" and own is optimizer:
        LossScaling.find(model).look_at(own, [parameter for parameter, _ in pairs], wrap)
        wrap = _as_it_is
    _work_on_host(own, wrap(own.step), pairs)
    return optimizer


def _as_it_is(step: Callable[..., Any]) -> Callable[..., Any]:
    return step


def _to_host(group: dict[str, Any], there: set[int]) -> list[tuple[Tensor, Tensor]]:
    """Parameters and their copies, which take their places; those that rest `there` are their own."""
    pairs: list[tuple[Tensor, Tensor]] = [
        (p, p if id(p) in there else nn.Parameter(_room(p).copy_(_local(p).detach()))) for p in group["params"]
    ]
    group["params"] = [copy for _, copy in pairs]
    return pairs


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _room(like: Tensor) -> Tensor:
    local = _local(like)
    return torch.empty_like(local, device="cpu", pin_memory=local.is_cuda, requires_grad=False)


def _work_on_host(optimizer: Optimizer, step: Callable[..., Any], pairs: list[tuple[Tensor, Tensor]]) -> None:
    moving = [(parameter, copy) for parameter, copy in pairs if copy is not parameter]
    on_gpu = any(_local(p).is_cuda for p, _ in moving)

    @torch.no_grad()
    def host_step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        for parameter, copy in moving:
            _bring(parameter, copy)
        if on_gpu:
            torch.cuda.synchronize()
        result = step(*args, **kwargs)
        for parameter, copy in moving:
            _local(parameter).copy_(copy, non_blocking=True)
        return result

    def zero_grad(_: Optimizer, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - the optimizer's own signature
        for parameter, _copy in pairs:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    optimizer.step = MethodType(host_step, optimizer)  # type: ignore[method-assign]
    optimizer.zero_grad = MethodType(zero_grad, optimizer)  # type: ignore[method-assign]


def _bring(parameter: Tensor, copy: Tensor) -> None:
    """The gradient to the host; none stays none."""
    if parameter.grad is None:
        copy.grad = None
        return
    gradient = _local(parameter.grad)
    if copy.grad is None:
        copy.grad = torch.empty_like(gradient, device="cpu", pin_memory=gradient.is_cuda)
    copy.grad.copy_(gradient, non_blocking=True)
