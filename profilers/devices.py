"""Which device runs a step: `cuda` where there is one, else `virtual`, else `fake`; and what it does if it cannot.

A fake run stops where an operator depends on values. Then the same step really runs, small, on the CPU at three batch
sizes, and the trace at the asked size is refit from them; the report says so, with the residual of the size left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.scale import refit
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.profilers.cpu import profile_cpu
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.faking import DataDependentError
from dnnmem.profilers.request import STEPS, Request
from dnnmem.profilers.step import Target

SMALL_BATCHES = (2, 4, 6)
"""Batch sizes of the real runs that stand in for a fake one."""


def choose_device(name: str) -> str:
    """The device that `auto` means here, or `name` itself; `UnsupportedError` if this machine cannot serve it."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "fake"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            f"no CUDA device here (torch {torch.__version__})", hint="use --device fake --gpu NAME: it needs no GPU"
        )
    return name


def run_on(
    device: str, target: Target, request: Request, origin: Origin, on_step: Callable[[int], None]
) -> tuple[Trace, Measurement]:
    """Run the step on `device` and return its trace and what was measured."""
    steps = request.steps or STEPS[device]
    if device == "cpu":
        return profile_cpu(target, steps=steps, repeats=request.repeats, origin=origin, on_step=on_step)
    if device == "cuda":
        from dnnmem.profilers.cuda import profile_cuda

        return profile_cuda(target, steps=steps, repeats=request.repeats, origin=origin, timed=True, on_step=on_step)
    if device == "virtual":
        from dnnmem.profilers.virtual import profile_virtual

        return profile_virtual(target, steps=steps, origin=origin, on_step=on_step)
    try:
        own = find_device(f"{request.gpu_file}:{request.gpu}") if request.gpu_file else None
        return profile_fake(target, steps=steps, origin=origin, gpu=own, on_step=on_step)
    except DataDependentError as error:
        if not request.extrapolate:
            raise
        operator = error.operator  # and no more: the frames of the fake run hold tensors
    return _refit_from_cpu(target, request, origin, operator, on_step)


def _refit_from_cpu(
    target: Target, request: Request, origin: Origin, operator: str, on_step: Callable[[int], None]
) -> tuple[Trace, Measurement]:
    wanted = int(target.batch["batch_size"])
    steps = request.steps or STEPS["cpu"]
    why = f"{operator} depends on values that a fake run does not have"
    if request.gpu is not None:
        said = f"operators are those of a CPU, not of {request.gpu}; --device virtual runs the GPU's"
        origin = replace(origin, notes=(*origin.notes, said))
    if wanted <= max(SMALL_BATCHES):
        note = f"{why}: the step was really run on the CPU instead"
        return profile_cpu(
            target, steps=steps, repeats=1, origin=replace(origin, notes=(*origin.notes, note)), on_step=on_step
        )
    traces = []
    for batch_size in SMALL_BATCHES:
        small = target.rescale(batch_size, request.seq_len)
        trace, _ = profile_cpu(small, steps=steps, repeats=0, origin=origin, on_step=on_step)
        traces.append(trace)
    try:
        trace, residual = refit(traces, wanted)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{why}, and real runs at batches {SMALL_BATCHES} cannot be extrapolated: {error.message}",
            hint="use --device cpu with the batch size itself, or --device cuda",
        ) from error
    note = (
        f"{why}: extrapolated from real CPU runs at batches {', '.join(map(str, SMALL_BATCHES))} "
        f"(largest residual {residual:.1%})"
    )
    ops = tuple(replace(op, seconds=None) for op in trace.ops)
    return replace(
        trace, ops=ops, batch=target.batch, origin=replace(origin, notes=(*origin.notes, note))
    ), Measurement()
