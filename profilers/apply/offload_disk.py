"""`offload.disk`: the optimizer's states in files that are mapped into memory; the system reads and writes them.

    first step      update of one parameter, its states -> a file;  update of the next one ...     never all in memory
    later steps     as ever: the update touches the files, and the system keeps of them what it has room for

Files lie in a folder of their own below the system's temporary one, which `TMPDIR` names: it has to be on a disk. They
go with the optimizer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def with_states_in_files(step: Callable[..., Any], optimizer: Optimizer) -> Callable[..., Any]:
    """What is to be called in the place of `step`, of an `optimizer` that has made none yet."""
    folder = TemporaryDirectory(prefix="dnnmem-states-", ignore_cleanup_errors=True)
    weakref.finalize(optimizer, folder.cleanup)

    def mapped_step(closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if all(p in optimizer.state for group in optimizer.param_groups for p in group["params"] if _moves(p)):
            step()
        else:
            _one_by_one(optimizer, step, Path(folder.name))
        return loss

    return mapped_step


def _moves(parameter: Tensor) -> bool:
    return parameter.grad is not None


def _one_by_one(optimizer: Optimizer, step: Callable[..., Any], folder: Path) -> None:
    """A step in which each parameter's states leave the memory before the next one's are made."""
    groups = [list(group["params"]) for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["params"] = []
        for group, parameters in zip(optimizer.param_groups, groups, strict=True):
            for parameter in filter(_moves, parameters):
                group["params"] = [parameter]
                step()
                _to_files(optimizer.state[parameter], folder)
            group["params"] = []
    finally:
        for group, parameters in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = parameters


def _to_files(states: dict[str, Any], folder: Path) -> None:
    """Counters stay, and so do states that are no plain tensors."""
    for name, state in states.items():
        if type(state) is Tensor and state.numel() > 1 and state.is_cpu:
            path = folder / f"{len(list(folder.iterdir()))}"
            mapped = torch.from_file(str(path), shared=True, size=state.numel(), dtype=state.dtype)
            states[name] = mapped.view(state.shape).copy_(state)
