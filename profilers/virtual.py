"""The `virtual` device: the step runs on a stub of CUDA that has a chosen GPU's memory and no GPU behind it.

It is the `cuda` device's own code, in a process that the parent starts with the stub libraries (`virtual_gpu`): torch's
dispatcher, autograd and caching allocator are the real ones, so every allocation is. Nothing is computed, and no event
tells a time: the trace has no seconds. Small values are true all the same (`gpu_values.py`), for host code that reads
them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import torch

from dnnmem.estimator.context_memory import context_notes
from dnnmem.estimator.devices import load_devices
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.profilers.cuda import profile_cuda
from dnnmem.profilers.gpu_values import SmallValues
from dnnmem.profilers.script_compile import FixedChoices, graphs
from dnnmem.profilers.step import Target
from dnnmem.profilers.virtual_facts import cudnn_facts, cudnn_notes
from dnnmem.profilers.virtual_gpu.certainty import certainty_notes
from dnnmem.profilers.virtual_gpu.launch import DEFAULT_GPU

_EAGER = "layers and operators are those of the step run eagerly, which is not what is compiled; totals are measured"


def is_virtual() -> bool:
    """Whether this process has virtual GPUs, and no others."""
    return hasattr(ctypes.CDLL(None), "vg_device_count")


def profile_virtual(
    target: Target, *, steps: int, origin: Origin, on_step: Callable[[int], None]
) -> tuple[Trace, Measurement]:
    """Trace of the last recorded step, and the memory that a bare run of the same steps had; no times.

    Raises `UnsupportedError` in a process that was not started with the stub libraries.
    """
    if not is_virtual():
        raise UnsupportedError(
            "this process was not started on a virtual GPU", hint="start it with `dnnmem profile --device virtual`"
        )
    notes = [*origin.notes, *_notes(origin.gpu)]
    origin = replace(origin, gpu=origin.gpu or DEFAULT_GPU, notes=tuple(notes))
    choices = FixedChoices(pass_through=True)
    values = SmallValues()
    try:
        trace, measurement = profile_cuda(target, steps=steps, repeats=0, origin=origin, timed=False, on_step=on_step)
    finally:
        values.close()
    device = load_devices().get(origin.gpu or DEFAULT_GPU)
    if device is not None and device.context_bytes is None:
        measurement = replace(measurement, context_bytes=None)
    told = cudnn_facts() | values.facts()
    measurement = replace(measurement, facts={**measurement.facts, **told})
    eager = [_EAGER] if graphs() else []
    if found := [*cudnn_notes(told), *certainty_notes(), *choices.notes(), *values.notes(), *eager]:
        trace = replace(trace, origin=replace(trace.origin, notes=(*notes, *found)))
    return trace, measurement


def _notes(gpu: str | None) -> list[str]:
    """What a reader should know of the GPU that was shown."""
    notes = [] if gpu else [f"no --gpu was named: the virtual GPU is {DEFAULT_GPU}"]
    device = load_devices().get(gpu or DEFAULT_GPU)
    if device is not None:
        notes += context_notes(device)
    capability = torch.cuda.get_device_capability()
    built = [arch for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    if built and not any(_runs(arch, capability) for arch in built):
        notes.append(
            f"torch {torch.__version__} has no kernels for compute capability {'.'.join(map(str, capability))}: "
            "a real GPU of this kind needs another build"
        )
    return notes


def _runs(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for `arch` (`sm_86`, `sm_90a`) runs on such a GPU: the same major number, the minor not above.

    >>> _runs("sm_80", (8, 9)), _runs("sm_90a", (8, 9)), _runs("sm_89", (8, 6))
    (True, False, False)
    """
    digits = "".join(c for c in arch.removeprefix("sm_") if c.isdigit())
    return int(digits[:-1]) == capability[0] and int(digits[-1]) <= capability[1]
