"""`optimizer`: another optimizer over the same parameters, or another kernel of the same one.

    name      a new optimizer; groups stay, with their learning rates, and weight decay where both mean the same by it
    kernel    the flags `foreach` and `fused` of each group

AdamW, Adafactor and AdamW8bit take weight decay off the parameters, SGD and Adam add it to gradients: from one sort to
the other it begins at 0. Schedulers hold on to an optimizer, and are to be made after this.

>>> import torch
>>> model = nn.Linear(2, 1)
>>> other = to_optimizer(torch.optim.AdamW(model.parameters(), lr=0.5), model, Plan(optimizer=Choice(name="adafactor")))
>>> type(other).__name__, other.param_groups[0]["lr"], other.param_groups[0]["weight_decay"]
('Adafactor', 0.5, 0.01)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.plan import Optimizer as Choice
from dnnmem.estimator.plan import Plan

_CLASSES = {"sgd": "SGD", "adamw": "AdamW", "adafactor": "Adafactor"}
_DECOUPLED = ("AdamW", "Adafactor", "AdamW8bit")
"""Optimizers whose weight decay does not pass through gradients."""
_FLAGS = {"for_loop": ("foreach", "fused"), "foreach": ("foreach",), "fused": ("fused",)}
"""What an optimizer must know to have a kernel; a loop needs one of them."""


def to_optimizer(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """The optimizer of `plan` in the place of `optimizer`, or that one with other flags.

    Raises `UsageError` where it has made steps already or has no such kernel, `UnsupportedError` where a library that
    it needs is not installed.
    """
    del model
    wanted = plan.optimizer
    if wanted == Choice():
        return optimizer
    if optimizer.state:
        raise UsageError(
            f"the optimizer holds states of {len(optimizer.state)} parameters already",
            hint="apply the plan before the first step; load states afterwards",
        )
    if wanted.name is not None and not _is(optimizer, wanted.name):
        optimizer = _made(optimizer, wanted.name)
    if wanted.kernel is not None:
        _switch(optimizer, wanted.kernel)
    return optimizer


def _is(optimizer: Optimizer, name: str) -> bool:
    """Whether it is the one that a plan calls so, without options that make it another."""
    same = type(optimizer) is _class(name)
    return same and not any(group.get("momentum") or group.get("amsgrad") for group in optimizer.param_groups)


def _class(name: str) -> Any:
    if name in _CLASSES:
        return getattr(torch.optim, _CLASSES[name])
    try:
        from torchao.optim import AdamW8bit  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UnsupportedError(
            "optimizer.name is adamw8bit, which is torchao's, but torchao is not installed",
            hint="pip install torchao",
        ) from error
    return AdamW8bit


def _made(old: Optimizer, name: str) -> Optimizer:
    cls = _class(name)
    groups: list[dict[str, Any]] = []
    for group in old.param_groups:
        same = type(old) is cls or (type(old).__name__ in _DECOUPLED and cls.__name__ in _DECOUPLED)
        decay = group.get("weight_decay", 0.0) if same else 0.0
        groups.append({"params": group["params"], "lr": group["lr"], "weight_decay": decay})
    new: Optimizer = cls(groups, lr=old.defaults["lr"])
    return new


def _switch(optimizer: Optimizer, kernel: str) -> None:
    """Set the flags that torch's optimizers look at in each step."""
    if kernel == "fused" and type(optimizer).__name__ == "AdamW8bit":
        return  # it has no other
    if not any(flag in optimizer.defaults for flag in _FLAGS[kernel]):
        raise UsageError(f"{type(optimizer).__name__} has no kernel {kernel}", hint="leave optimizer.kernel out")
    for group in (optimizer.defaults, *optimizer.param_groups):
        group.update({flag: flag == kernel for flag in ("foreach", "fused") if flag in optimizer.defaults})
    told: Any = optimizer
    told._step_supports_amp_scaling = kernel == "fused"
    told._need_device_dtype_check_for_fused = kernel == "fused"
