"""`precision`: which element types a real model computes in, and what rests beside it in wider ones.

    float32, tf32         torch.backends: products of float32 matrices in full, or on tensor cores
    bf16_amp, fp16_amp    forward under torch.autocast, floating outputs in float32 again
    bfloat16              model.to(bfloat16), floating inputs and outputs cast; with `param` float32 the optimizer
                          updates masters
    linear float8         torchao's linear layers in the blocks

fp16's loss scaling needs no change of the loop: gradients are linear in what enters the backward pass, so that the
scale goes in where gradients come to the model's outputs. When the pass is over they are unscaled, so that clipping
between `backward` and `step` sees true ones; `step` is left out where one of them is not finite (`loss_scaling`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.precision import AMP
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.float8 import to_float8
from dnnmem.profilers.apply.layout import lay_out
from dnnmem.profilers.apply.loss_scaling import LossScaling, scaling_of
from dnnmem.profilers.apply.master_weights import over_masters
from dnnmem.profilers.apply.sharding import shares_update
from dnnmem.profilers.rules.autocast import autocast_device
from dnnmem.profilers.tensors import map_tensors


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` that computes as `plan.precision.compute` says; the same object.

    Raises `UnsupportedError` for autocast of a model whose parameters are not in float32.
    """
    model = _computing(model, plan)
    if plan.precision.linear == "float8":
        model = to_float8(model)
    return model


def _computing(model: nn.Module, plan: Plan) -> nn.Module:
    compute = plan.precision.compute
    if compute in {"float32", "tf32"}:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = compute == "tf32"
        _check_float32(model, compute)
    elif compute in AMP:
        _check_float32(model, compute)
        scaling = scaling_of(model) if compute == "fp16_amp" else None
        _under(model, lambda: _autocast(model, compute), leave=scaling.enter if scaling is not None else Tensor.float)
    elif compute == "bfloat16" and all(p.dtype is torch.bfloat16 for p in _floating(model)):
        return model  # it is what it is to be, its output too
    elif compute == "bfloat16" and _is_sharded_mixed(plan):
        _under(model, nullcontext)  # FSDP2 casts what it gathers, and inputs
    elif compute == "bfloat16":
        lay_out(model, torch.bfloat16)  # else they lie scattered over the segments of wide ones
        _under(model, nullcontext, enter=Tensor.bfloat16)
    return model


def to_optimizer(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """`optimizer` that unscales and skips under `fp16_amp`, and that works on masters where `param` is wider."""
    if plan.precision.compute == "fp16_amp":
        LossScaling.find(model).attach(optimizer)
    if not plan.splits_parameters:
        _check_gradients(model, plan)
    if plan.precision.param is not None and not plan.splits_parameters and not shares_update(plan):
        over_masters(optimizer, plan.precision)
    return optimizer


def _check_gradients(model: nn.Module, plan: Plan) -> None:
    """Raise `UnsupportedError` for gradients that neither rest in their parameters' type nor in their masters'."""
    grad = plan.precision.grad
    own = next((p.dtype for p in _floating(model)), None)
    if grad not in {None, plan.precision.param} and own is not getattr(torch, str(grad)):
        raise UnsupportedError(
            f"precision.grad is {grad}, but parameters are in {str(own).removeprefix('torch.')}, and torch keeps "
            "gradients in the type of what they belong to",
            hint=f"--set precision.param={grad} keeps masters in it, and their gradients",
        )


def _floating(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.is_floating_point())


def _is_sharded_mixed(plan: Plan) -> bool:
    """`sharding` does it: parts rest in the wider type."""
    return plan.splits_parameters and plan.precision.param not in {None, "bfloat16"}


def _check_float32(model: nn.Module, compute: str) -> None:
    other = next((p.dtype for p in _floating(model) if p.dtype is not torch.float32), None)
    if other is not None:
        raise UnsupportedError(
            f"precision.compute is {compute}, but the model has parameters in {str(other).removeprefix('torch.')}; "
            "it needs them all in float32",
            hint="build the model in float32",
        )


def _autocast(model: nn.Module, compute: str) -> AbstractContextManager[Any]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.autocast(autocast_device(device), getattr(torch, AMP[compute]))


def _under(
    model: nn.Module,
    context: Callable[[], AbstractContextManager[Any]],
    *,
    enter: Callable[[Tensor], Tensor] | None = None,
    leave: Callable[[Tensor], Tensor] = Tensor.float,
) -> None:
    """Run the forward pass in a context, `enter` being done to its floating inputs and `leave` to the outputs.

    A bound method, so that a deep copy of the model runs itself and not the original.
    """
    inner = model.forward.__func__ if isinstance(model.forward, MethodType) else type(model).forward

    @wraps(inner)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if enter is not None:
            args, kwargs = map_tensors((args, kwargs), _to_floating(enter))
        with context():
            output = inner(self, *args, **kwargs)
        return map_tensors(output, _to_floating(leave))

    model.forward = MethodType(forward, model)


def _to_floating(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: change(tensor) if tensor.is_floating_point() else tensor
