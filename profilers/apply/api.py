"""`dnnmem.apply`: a plan done to the user's own model and optimizer, inside the user's own training script.

    model, optimizer = dnnmem.apply(model, optimizer, "plan.json")

    for batch in loader:                       # as before: with accumulation k, each k-th step() updates
        loss = criterion(model(batch), ...)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

>>> import torch
>>> model = nn.Linear(2, 1)
>>> model, optimizer = apply(model, torch.optim.SGD(model.parameters()), {"precision": {"compute": "bfloat16"}})
>>> model.weight.dtype
torch.bfloat16
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Plan, check
from dnnmem.estimator.plan_text import from_json
from dnnmem.profilers.apply import apply_to_model, apply_to_optimizer

_APPLIED = "_dnnmem_plan"


def apply(
    model: nn.Module, optimizer: Optimizer, plan: Plan | Mapping[str, Any] | str | os.PathLike[str]
) -> tuple[nn.Module, Optimizer]:
    """Do what `plan` says to `model` and `optimizer`, in place where torch allows; use what is returned.

    Names in `state_dict()` and groups of parameters stay; the parameters may become others, and the optimizer then
    holds the new ones. Learning-rate schedulers are made afterwards, weights may be loaded before, the optimizer's
    states after. With more ranks than one call it in each, once `torch.distributed.init_process_group` was called and
    the device is set; a model on the host is then moved to the GPU as it is split. `plan` is a `Plan`, an object of
    its JSON form, or the path of a file with it.

    Raises `UsageError` for a plan that contradicts itself, the process group or an optimizer that has made steps,
    `UnsupportedError` for what is predicted only.
    """
    wanted = plan if isinstance(plan, Plan) else read_plan(plan)
    check(wanted)
    if _APPLIED in model.__dict__:
        raise UsageError("the model has a plan already", hint="build it anew for another plan")
    if optimizer.state:
        raise UsageError(
            f"the optimizer holds states of {len(optimizer.state)} parameters already",
            hint="apply the plan before the first step; load the optimizer's states afterwards",
        )
    names = {id(p): name for name, p in model.named_parameters()}
    strangers = sum(id(p) not in names for group in optimizer.param_groups for p in group["params"])
    if strangers and wanted.splits_parameters:
        raise UsageError(
            f"the optimizer holds {strangers} parameters that are not the model's, which {wanted.sharding.strategy} "
            "cannot split",
            hint="give the module that has all of them",
        )
    model = apply_to_model(model, wanted)
    _aim(optimizer.param_groups, names, dict(model.named_parameters()))
    optimizer = apply_to_optimizer(optimizer, model, wanted)
    model.__dict__[_APPLIED] = wanted
    return model, optimizer


def read_plan(plan: Mapping[str, Any] | str | os.PathLike[str]) -> Plan:
    """The plan of an object of its JSON form, or of a file. Raises `UsageError` for one that cannot be read."""
    if isinstance(plan, Mapping):
        return from_json(plan)
    try:
        return from_json(json.loads(Path(plan).read_text("utf-8")), str(plan))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{plan} cannot be read as a plan: {error}", hint="dnnmem recommend writes plans, and so does --set"
        ) from error


def _aim(groups: Iterable[dict[str, Any]], names: Mapping[int, str], new: Mapping[str, nn.Parameter]) -> None:
    """Let the groups hold the parameters that have the names of the old ones now."""
    for group in groups:
        group["params"] = [new.get(names.get(id(p), ""), p) for p in group["params"]]
