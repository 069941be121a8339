"""The `cpu` device: the step really runs, so that a trace, its times and its memory are measured on this machine.

Three runs of one built model: recorded steps (the trace, with seconds of each operator), bare steps (the wall time),
and bare steps under torch's profiler, which reports every allocation and perturbs none (the peak).
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch

from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.profilers.capture import Built, capture
from dnnmem.profilers.step import Target

_MARK = "dnnmem.step"


class WallClock:
    """The clock of this machine."""

    now = staticmethod(time.perf_counter)

    @staticmethod
    def seconds(before: float, after: float) -> float:
        """Seconds between two readings."""
        return after - before


def profile_cpu(
    target: Target, *, steps: int, repeats: int, origin: Origin, on_step: Callable[[int], None]
) -> tuple[Trace, Measurement]:
    """Trace of the last of `steps` recorded steps; wall seconds and peak bytes of bare steps after them."""
    model = target.make_model()
    built = Built(model=model, batch=target.make_batch(), optimizer=target.make_optimizer(model.parameters()))
    trace, growth = capture(
        target, built, device_type="cpu", steps=steps, origin=origin, clock=WallClock(), on_step=on_step
    )
    seconds = []
    for index in range(repeats):
        before = time.perf_counter()
        target.train_step(built.model, built.batch, built.optimizer)
        seconds.append(time.perf_counter() - before)
        on_step(steps + index)
    rise = peak_rise(lambda: target.train_step(built.model, built.batch, built.optimizer))
    on_step(steps + repeats)
    return trace, Measurement(
        allocated_bytes=trace.pinned_bytes() + rise,
        step_seconds=statistics.median(seconds) if seconds else None,
        facts={"threads": torch.get_num_threads(), "repeats": repeats},
        growth_bytes=growth,
    )


def peak_rise(run: Callable[[], object]) -> int:
    """Most bytes that one call of `run` holds beyond what is alive when it begins; runs it twice, nothing observing.

    The profiler knows only blocks allocated under it; what the first call leaves behind makes the second exact.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profiler:
            run()
            with torch.autograd.profiler.record_function(_MARK):
                run()
    events = profiler.kineto_results.events()
    marks = [e.start_ns() for e in events if e.name() == _MARK]
    rise = most = 0
    memory = sorted((e.start_ns(), i) for i, e in enumerate(events) if e.name() == "[memory]")
    for moment, index in memory:
        if moment >= marks[0]:
            rise += events[index].nbytes()
            most = max(most, rise)
    return most
