"""How a process is started on a virtual GPU: which variables make it load the stub libraries, and whether it works.

The libraries are preloaded: torch finds its own copies of NVIDIA's by a path that is written into it, but a library
that is loaded already under the same name comes before that.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dnnmem.estimator.device import Device
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu.build import build, default_cache, find_compiler, read_targets
from dnnmem.profilers.virtual_gpu.cudnn_service import VARIABLE, find_cudnn, running
from dnnmem.profilers.virtual_gpu.identity import identity
from dnnmem.profilers.virtual_gpu.installed import WITHOUT, find_torch

DEFAULT_GPU = "h100-sxm-80gb"
"""The GPU where nobody names one."""

IN_FLIGHT = 1024
"""Kernels and copies that a GPU's queue holds before the host has to wait: "about 1000" in measurements at
forums.developer.nvidia.com/t/68937 and stackoverflow.com/questions/53970187, 1024 in cupy's issue 1294."""

_MACHINES = ("x86_64", "aarch64")
_TOOLS = Path(__file__).parent / "tools"
"""What scripts call besides torch: nvidia-smi."""
_REAL_GPUS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_PIPE_DIRECTORY")
"""What these say of the machine's own GPUs does not hold for virtual ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a process on virtual GPUs."""

    environment: Mapping[str, str]
    """All of its environment."""
    note: str
    """What a person should know of the libraries' place; may be empty."""


def unavailable() -> str | None:
    """Why there is no virtual GPU on this machine; None if there is."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return f"it needs Linux on {' or '.join(_MACHINES)}; this is {platform.system()} on {platform.machine()}"
    try:
        find_torch()
        find_compiler()
    except UnsupportedError as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return None


def prepare(
    gpu: str | Device | None,
    base: Mapping[str, str],
    *,
    count: int = 1,
    cache: Path | None = None,
    error_file: Path | None = None,
    in_flight: int = IN_FLIGHT,
) -> Launch:
    """How to start a process on `count` GPUs called `gpu`, with the environment `base` besides; builds what is missing.

    `error_file`: where a call that the virtual GPU lacks is written as JSON before it ends the process; what the
    process compiles goes beside it, and not into the user's own cache. `in_flight`: how far the host runs ahead of the
    GPU, in kernels and copies; 0: the GPU is never behind (queue.c). Raises
    `UnsupportedError` if this machine cannot, `UsageError` if there is no such GPU.
    """
    if reason := unavailable():
        raise UnsupportedError(f"no virtual GPU here: {reason}", hint=WITHOUT)
    device = gpu if isinstance(gpu, Device) else find_device(gpu or DEFAULT_GPU)
    identity(device, count=count)  # first: it is quick to say no
    folder, note = build(cache)
    described = identity(device, count=count, targets=read_targets(folder))
    kept = {name: value for name, value in base.items() if name not in _REAL_GPUS and "DNNMEM_VGPU_" not in name}
    told = {"DNNMEM_VGPU_ERROR_FILE": str(error_file)} if error_file else {}
    told |= {"DNNMEM_VGPU_QUEUE": str(in_flight)}
    told |= _workspaces(device, folder, cache or default_cache())
    told |= _compilers(error_file.parent if error_file else None, base, cache or default_cache())
    return Launch(environment={**kept, **described, **told, **_preload(folder, base)}, note=note)


def _workspaces(device: Device, folder: Path, cache: Path) -> dict[str, str]:
    """Where the stub of cuDNN asks for workspaces, as long as this process lasts; nothing if nobody can be asked."""
    try:
        asked = find_cudnn(find_torch(), cache)
    except UnsupportedError:
        return {}  # the stub counts what it does not know
    return {VARIABLE: running(asked, device, driver=folder / "libcuda.so.1", cache=cache).address}


def _compilers(run: Path | None, base: Mapping[str, str], cache: Path) -> dict[str, str]:
    """Where compilers keep what they make: Triton's binaries are true, so they last.

    What Inductor chooses without timing anything does not outlive the folder of the `run`, where a real GPU could find
    it; nor does it change the next run, which would have no autotuning in its peak.
    """
    kept = {} if "TRITON_CACHE_DIR" in base else {"TRITON_CACHE_DIR": str(cache / "triton")}
    return kept | ({"TORCHINDUCTOR_CACHE_DIR": str(run / "inductor")} if run else {})


def _preload(folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Load the libraries of `folder` before any other. They go by name, since a path with a blank would be two."""
    if ":" in str(folder) or ";" in str(folder):
        raise UnsupportedError(
            f"libraries cannot be loaded from {folder}: its name has a colon or semicolon", hint="set DNNMEM_CACHE"
        )
    names = sorted(path.name for path in folder.glob("lib*.so.*"))
    names.sort(key=lambda name: name != "libcuda.so.1")
    return {
        "LD_PRELOAD": " ".join([*names, *base.get("LD_PRELOAD", "").replace(":", " ").split()]),
        "LD_LIBRARY_PATH": ":".join(filter(None, (str(folder), base.get("LD_LIBRARY_PATH", "")))),
        "TRITON_LIBCUDA_PATH": str(folder),
        "PATH": os.pathsep.join(filter(None, (str(_TOOLS), base.get("PATH", os.defpath)))),
    }
