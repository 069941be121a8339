"""The `cuda` device: the step runs on a GPU, with torch's allocator, CUDA events and NVML as witnesses.

Two runs of the target in one process, the allocator emptied between them:

    bare       the peak that is reported (allocated, reserved) and the wall time; nothing observes
    recorded   the trace: every operator, joined with the allocator's own history, which has their temporaries

The same code runs on the virtual GPU, whose memory is true and whose events say nothing of time.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.profilers import monitor
from dnnmem.profilers.capture import Built, capture
from dnnmem.profilers.labels import new_labels
from dnnmem.profilers.step import Target
from dnnmem.profilers.tensors import map_tensors

MAX_HISTORY = 10_000_000
"""Entries of the allocator's history that are kept."""


class EventClock:
    """CUDA events on the current stream."""

    def now(self) -> torch.cuda.Event:
        """Record an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, before: torch.cuda.Event, after: torch.cuda.Event) -> float:
        """Seconds between two events; waits for the second."""
        after.synchronize()
        return float(before.elapsed_time(after)) / 1000


def profile_cuda(
    target: Target, *, steps: int, repeats: int, origin: Origin, timed: bool, on_step: Callable[[int], None]
) -> tuple[Trace, Measurement]:
    """Trace of the last recorded step, and what a bare run of them measured. `timed`: events tell the time."""
    before = monitor.read()
    torch.cuda.init()
    measurement = _bare_run(target, steps, repeats if timed else 0, before, on_step)
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=MAX_HISTORY)
    labels = new_labels()
    labels.set("~0")
    try:
        trace, growth = capture(
            target,
            _build(target),
            device_type="cuda",
            steps=steps + (repeats if timed else 0),
            origin=replace(origin, gpu=origin.gpu or _spec_name()),
            clock=EventClock() if timed else None,
            label=labels.set,
            history=lambda: labels.put_on(_history()),
            on_step=lambda index: on_step(steps + index),
        )
    finally:
        torch.cuda.memory._record_memory_history(None)
    return trace, replace(measurement, growth_bytes=growth)


def _build(target: Target) -> Built:
    """The target on the GPU: parameters move one by one, as `model.cuda()` does."""
    model = target.make_model().cuda()
    batch = map_tensors(target.make_batch(), lambda tensor: tensor.cuda())
    return Built(model=model, batch=batch, optimizer=target.make_optimizer(model.parameters()))


def _spec_name() -> str:
    """The GPU's name in `specs/`, or what torch calls it if it is not there."""
    name = torch.cuda.get_device_name()
    try:
        return find_device(name).name
    except UsageError:
        return name


def _history() -> list[dict[str, Any]]:
    torch.cuda.synchronize()
    snapshot = torch.cuda.memory._snapshot()
    history: list[dict[str, Any]] = snapshot["device_traces"][torch.cuda.current_device()]
    return history


def _bare_run(
    target: Target, steps: int, repeats: int, before: monitor.Reading, on_step: Callable[[int], None]
) -> Measurement:
    """Peaks of the last of `steps` steps and the median seconds of `repeats` more."""
    built = _build(target)
    for index in range(steps):
        torch.cuda.reset_peak_memory_stats()
        target.train_step(built.model, built.batch, built.optimizer)
        on_step(index)
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    seconds = []
    for _ in range(repeats):
        clock = EventClock()
        start = clock.now()
        target.train_step(built.model, built.batch, built.optimizer)
        seconds.append(clock.seconds(start, clock.now()))
    after = monitor.read()
    facts: dict[str, float | int | str] = {"alloc_retries": int(stats["num_alloc_retries"]), "repeats": repeats}
    named = {
        "gpu_used_bytes": after.used_bytes, "gpu_free_bytes": after.free_bytes, "others_bytes": after.others_bytes,
        "sm_clock_mhz": after.sm_clock_mhz, "temperature_c": after.temperature_c, "throttled": after.throttled or None,
    }  # fmt: skip
    facts.update({name: value for name, value in named.items() if value is not None})
    return Measurement(
        allocated_bytes=int(stats["allocated_bytes.all.peak"]),
        requested_bytes=int(stats["requested_bytes.all.peak"]),
        reserved_bytes=int(stats["reserved_bytes.all.peak"]),
        step_seconds=statistics.median(seconds) if seconds else None,
        context_bytes=_context(before, after, torch.cuda.memory_reserved()),
        facts=facts,
    )


def _context(before: monitor.Reading, after: monitor.Reading, reserved: int) -> int | None:
    """Memory of this process outside the allocator: by NVML's own count, else by what the GPU lost since the start."""
    if after.own_bytes is not None:
        return max(0, after.own_bytes - reserved)
    if before.used_bytes is None or after.used_bytes is None:
        return None
    return max(0, after.used_bytes - before.used_bytes - reserved)
