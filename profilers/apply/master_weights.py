"""Master weights: the model computes in a narrow type, the optimizer updates wide copies and casts them back.

backward   p.grad   with `grad` wide: cast at once, and summed in the master's gradient
step       master.grad = p.grad cast, one after the other;  update of the masters;  p <- master
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dnnmem.estimator.plan import Precision

Pairs = list[tuple[Tensor, Tensor]]


def over_masters(optimizer: Optimizer, precision: Precision) -> None:
    """Let `optimizer` work on copies in `precision.param` of those parameters that are narrower."""
    pairs = _replaced(optimizer, getattr(torch, str(precision.param)))
    if not pairs:
        return
    if precision.grad == precision.param:
        for parameter, master in pairs:
            parameter.register_post_accumulate_grad_hook(_passing_on(master))
    step: Callable[..., Any] = optimizer.step
    zero_grad: Callable[..., Any] = optimizer.zero_grad

    def step_of_masters(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        for parameter, master in pairs:
            _pass_on(parameter, master)
        result = step(*args, **kwargs)
        with torch.no_grad():
            torch._foreach_copy_([_own(p) for p, _ in pairs], [_own(m) for _, m in pairs])
        return result

    def zero_both(_optimizer: Optimizer, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - the optimizer's own signature
        zero_grad(set_to_none)
        for parameter, _ in pairs:
            parameter.grad = None

    optimizer.step = MethodType(step_of_masters, optimizer)  # type: ignore[method-assign]
    optimizer.zero_grad = MethodType(zero_both, optimizer)  # type: ignore[method-assign]


def _own(tensor: Tensor) -> Tensor:
    """The rank's part of a DTensor; any other tensor itself."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _replaced(optimizer: Optimizer, dtype: torch.dtype) -> Pairs:
    """Parameters and the masters that stand in their places now."""
    pairs: Pairs = []
    for group in optimizer.param_groups:
        for n, parameter in enumerate(group["params"]):
            if parameter.is_floating_point() and parameter.dtype.itemsize < dtype.itemsize:
                master = nn.Parameter(parameter.detach().to(dtype))
                if parameter in optimizer.state:
                    optimizer.state[master] = optimizer.state.pop(parameter)
                group["params"][n] = master
                pairs.append((parameter, master))
    return pairs


def _passing_on(master: Tensor) -> Callable[[Tensor], None]:
    return lambda parameter: _pass_on(parameter, master)


def _pass_on(parameter: Tensor, master: Tensor) -> None:
    """The parameter's gradient becomes a part of the master's."""
    if parameter.grad is None:
        return
    if master.grad is None:
        master.grad = parameter.grad.to(master.dtype)
    else:
        master.grad.add_(parameter.grad)
    parameter.grad = None
