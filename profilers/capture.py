"""Runs a built step under the recorder: the part that all devices share.

All steps are recorded, since the first ones decide what the allocator holds when the last one runs (optimizer states are
made in the first); the last one becomes the trace.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.trace import Module, Origin, Trace
from dnnmem.profilers.kinds import name_batch, name_model, name_rest, naming_gradients, parameter_names
from dnnmem.profilers.modules import ModuleTracker, short_path
from dnnmem.profilers.record import Recorder, saved_hooks
from dnnmem.profilers.rewrite import to_trace
from dnnmem.profilers.step import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A target built on its device."""

    model: nn.Module
    """In training mode unless the user chose otherwise."""
    batch: Any
    """On the same device."""
    optimizer: Optimizer
    """Over the model's parameters."""


def capture(
    target: Target,
    built: Built,
    *,
    device_type: str,
    fake: bool,
    timed: bool,
    steps: int,
    origin: Origin,
    on_step: Callable[[int], None] = lambda _: None,
) -> tuple[Trace, int]:
    """Run `steps` steps and return the trace of the last one, and by how many bytes memory grew over it."""
    gc.collect()
    tracker = ModuleTracker(built.model)
    recorder = Recorder(tracker, device_type=device_type, fake=fake, timed=timed)
    names = parameter_names(built.model)
    name_model(recorder, built.model)
    name_batch(recorder, built.batch)
    with tracker, naming_gradients(recorder, names, built.model):
        for index in range(steps):
            if index == steps - 1:
                name_rest(recorder)
            recorder.start_step()
            with recorder, saved_hooks(recorder):
                target.train_step(built.model, built.batch, built.optimizer)
            on_step(index)
    return to_trace(recorder.log, modules=describe_modules(built.model), batch=target.batch, origin=origin)


def describe_modules(model: nn.Module) -> tuple[Module, ...]:
    """Path, class and source line of every module, in definition order."""
    sources: dict[type, str] = {}
    result = []
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in sources:
            sources[kind] = _class_source(kind)
        path = tuple(name.split(".")) if name else ()
        result.append(Module(path=path, type=kind.__name__, source=sources[kind]))
    return tuple(result)


def _class_source(kind: type) -> str:
    """`file:line` of a class; empty for torch's own and for what has no file."""
    if kind.__module__.startswith("torch."):
        return ""
    try:
        lines, first = inspect.getsourcelines(kind)
        file = inspect.getsourcefile(kind)
    except (OSError, TypeError):
        return ""
    return f"{short_path(file)}:{first}" if file and lines else ""
