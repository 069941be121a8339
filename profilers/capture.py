"""Runs a built step under the recorder: the part that all devices share.

All steps are recorded, since the first ones decide what the allocator holds when the last one runs (optimizer states
are made in the first); the last one becomes the trace.
"""

from __future__ import annotations

import gc
import inspect
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from dnnmem.estimator.declared import declared_notes
from dnnmem.estimator.trace import Module, Origin, Trace
from dnnmem.estimator.unreached import unreached_note
from dnnmem.profilers.history import use_history
from dnnmem.profilers.holds import saved_hooks
from dnnmem.profilers.kinds import name_batch, name_model, name_rest, naming_gradients, parameter_names, unreached
from dnnmem.profilers.modules import ModuleTracker, short_path
from dnnmem.profilers.record import Log, Recorder
from dnnmem.profilers.rewrite import to_trace
from dnnmem.profilers.step import Target


class Clock(Protocol):
    """Reads a device's time."""

    def now(self) -> Any:
        """A mark."""

    def seconds(self, before: Any, after: Any) -> float:
        """Seconds between two marks; the device may be waited for."""


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
    steps: int,
    origin: Origin,
    fake: FakeTensorMode | None = None,
    clock: Clock | None = None,
    label: Callable[[str], None] | None = None,
    history: Callable[[], list[dict[str, Any]]] | None = None,
    inside: Callable[..., None] | None = None,
    moved: Callable[[Log, nn.Module], None] = lambda *_: None,
    on_step: Callable[[int], None] = lambda _: None,
) -> tuple[Trace, int]:
    """Run `steps` steps; the trace of the last one, and by how many bytes memory grew over it.

    `clock` times operators, the median over all steps but the first; `label` and `history` belong to an allocator that
    keeps a list of its events under the labels it is given; `inside` adds to the log what only kernels allocate,
    `moved` what the model's way to the device did.
    """
    gc.collect()
    tracker = ModuleTracker(built.model)
    recorder = Recorder(
        tracker,
        device_type=device_type,
        fake=fake,
        clock=clock.now if clock is not None else None,
        label=label,
        inside=inside,
    )
    name_model(recorder, built.model)
    moved(recorder.log, built.model)
    name_batch(recorder, built.batch)
    with tracker, naming_gradients(recorder, parameter_names(built.model), built.model) as reached:
        for index in range(steps):
            if index == steps - 1:
                name_rest(recorder)
            recorder.start_step()
            with recorder, saved_hooks(recorder):
                target.train_step(built.model, built.batch, built.optimizer)
            on_step(index)
    seconds = _median_seconds(recorder.log, clock) if clock is not None else []
    if history is not None:
        use_history(recorder.log, history())
    modules = describe_modules(built.model, tracker.called)
    left = unreached_note(unreached(built.model, built.optimizer, reached))
    notes = (*origin.notes, *sorted(recorder.log.notes), *declared_notes(modules), left)
    origin = replace(origin, notes=tuple(filter(None, notes)))
    return to_trace(recorder.log, seconds=seconds, modules=modules, batch=target.batch, origin=origin)


def _median_seconds(log: Log, clock: Clock) -> list[float | None]:
    """Median seconds of each op of the last step, over the steps after the first that ran the same ops."""
    bounds = [first for first, _ in log.steps] + [len(log.entries)]
    steps = [log.entries[a:b] for a, b in pairwise(bounds[1:])]
    names = [entry.name for entry in steps[-1]]
    alike = [step for step in steps if [entry.name for entry in step] == names]
    result: list[float | None] = []
    for same in zip(*alike, strict=True):
        times = [clock.seconds(*entry.times) for entry in same if entry.times is not None]
        result.append(statistics.median(times) if times else None)
    return result


def describe_modules(model: nn.Module, called: Collection[tuple[str, ...]] = ()) -> tuple[Module, ...]:
    """Path, class and source line of every module, in definition order; `called`: paths of those that were."""
    around = {path[:depth] for path in called for depth in range(len(path))} - set(called)
    sources: dict[type, str] = {}
    result = []
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in sources:
            sources[kind] = _class_source(kind)
        path = tuple(name.split(".")) if name else ()
        result.append(Module(path=path, type=kind.__name__, source=sources[kind], called=path not in around))
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
