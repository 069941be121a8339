"""`optimizer`: another optimizer over the same parameters, or another kernel of the same one, or another moment for it.

    name         a new optimizer; groups stay, with their learning rates, and weight decay where both mean the same
    kernel       the flags `foreach` and `fused` of each group
    state        moments rest in 16 bits               (`optimizer_alone`: one parameter at a time)
    in_backward  updates as gradients come             (the same)

Muon and GaLore have two groups for one, of matrices inside of the model and of other parameters. Weight decay is taken
off the parameters, or added to gradients (SGD, Adam, LARS): from one sort to the other it begins at 0. Schedulers hold
on to an optimizer, and are to be made after this.

>>> import torch
>>> model = nn.Linear(2, 1)
>>> other = to_optimizer(torch.optim.AdamW(model.parameters(), lr=0.5), model, Plan(optimizer=Choice(name="adafactor")))
>>> type(other).__name__, other.param_groups[0]["lr"], other.param_groups[0]["weight_decay"]
('Adafactor', 0.5, 0.01)
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.hidden import hidden_matrices
from dnnmem.estimator.passes.optimizer_limits import check_limits
from dnnmem.estimator.passes.optimizer_rules import RULES
from dnnmem.estimator.plan import Optimizer as Choice
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.optimizer_alone import update_alone
from dnnmem.profilers.kinds import parameter_names

_CLASSES = {"sgd": "SGD", "momentum": "SGD", "adamw": "AdamW", "adafactor": "Adafactor"}
"""Torch's own."""
_OWN = {
    "lion": "lion.Lion", "lamb": "layerwise.Lamb", "lars": "layerwise.Lars", "muon": "muon.Muon",
    "shampoo": "shampoo.Shampoo", "soap": "soap.Soap", "galore": "galore.GaLore",
}  # fmt: skip
"""Those of `dnnmem.profilers.optimizers`."""
_LIBRARIES = {"adamw8bit": "torchao", "adamw8bit_bnb": "bitsandbytes"}
"""Whose `optim.AdamW8bit` it is."""
_OPTIONS: Mapping[str, dict[str, Any]] = {"momentum": {"momentum": 0.9}}
_COUPLED = ("SGD", "Adam", "Lars")
"""Optimizers whose weight decay passes through gradients."""
_FLAGS = {"for_loop": ("foreach", "fused"), "foreach": ("foreach",), "fused": ("fused",)}
"""What an optimizer must know to have a kernel; a loop needs one of them."""


def to_optimizer(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """The optimizer of `plan` in the place of `optimizer`, or that one with other flags.

    Raises `UsageError` where it has made steps already or has no such kernel, `UnsupportedError` where a library that
    it needs is not installed.
    """
    wanted = plan.optimizer
    if wanted == Choice():
        return optimizer
    if optimizer.state:
        raise UsageError(
            f"the optimizer holds states of {len(optimizer.state)} parameters already",
            hint="apply the plan before the first step; load states afterwards",
        )
    name = wanted.name or next((name for name in RULES if _is(optimizer, name)), "")
    check_limits(name or type(optimizer).__name__, RULES[name].needs if name else "elements", plan)
    if wanted.name is not None and not _is(optimizer, wanted.name):
        optimizer = _made(optimizer, model, wanted.name)
    if wanted.kernel is not None:
        _switch(optimizer, wanted.kernel)
    update_alone(optimizer, wanted)
    return optimizer


def _is(optimizer: Optimizer, name: str) -> bool:
    """Whether it is the one that a plan calls so, without options that make it another."""
    found = type(optimizer)
    if found.__name__ != (_CLASSES.get(name) or _OWN.get(name, "AdamW8bit").rpartition(".")[2]):
        return False
    if name in _LIBRARIES and found.__module__.partition(".")[0] != _LIBRARIES[name]:
        return False
    groups = optimizer.param_groups
    if found is torch.optim.SGD:
        return all(bool(group.get("momentum")) is (name == "momentum") for group in groups)
    return not any(group.get("amsgrad") for group in groups)


def _class(name: str) -> Any:
    if name in _CLASSES:
        return getattr(torch.optim, _CLASSES[name])
    if name in _OWN:
        module, _, cls = _OWN[name].partition(".")
        return getattr(import_module(f"dnnmem.profilers.optimizers.{module}"), cls)
    library = _LIBRARIES[name]
    try:
        return import_module(f"{library}.optim").AdamW8bit
    except ImportError as error:
        raise UnsupportedError(
            f"optimizer.name is {name}, which is {library}'s, but {library} is not installed",
            hint=f"pip install {library}",
        ) from error


def _made(old: Optimizer, model: nn.Module, name: str) -> Optimizer:
    cls = _class(name)
    names = parameter_names(model)
    types = {tuple(path.split(".")): type(module).__name__ for path, module in model.named_modules() if path}
    hidden = hidden_matrices(types, [(*names[id(p)], p.ndim) for p in model.parameters()])
    groups: list[dict[str, Any]] = []
    for group in old.param_groups:
        same = type(old) is cls or (type(old).__name__ in _COUPLED) is (cls.__name__ in _COUPLED)
        decay = group.get("weight_decay", 0.0) if same else 0.0
        options = {"lr": group["lr"], "weight_decay": decay, **_OPTIONS.get(name, {})}
        if RULES[name].hidden_states is None:
            groups.append({"params": group["params"], **options})
            continue
        for inside in (True, False):
            params = [p for p in group["params"] if (names.get(id(p)) in hidden) is inside]
            if params:
                groups.append({"params": params, **options, "hidden": inside})
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
