"""The GPU as the rules see it: what of a `Device` and of the installed torch decides which kernels run.

>>> from dnnmem.estimator.devices import find_device
>>> gpu = gpu_of(find_device("a100-sxm-40gb"))
>>> gpu.setup.capability, gpu.threads.sm_count, gpu.workspace_bytes
((8, 0), 108, 8519680)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from dnnmem.estimator.device import Device
from dnnmem.estimator.reduction import Threads
from dnnmem.profilers.rules.backend import Setup, wheel_cudnn

_OF_AMD = (8, 0)
"""Capability to assume for AMD's cards, whose flash and memory-efficient kernels have about the same conditions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What the rules ask."""

    name: str
    """Name in `specs/`."""
    setup: Setup
    """For the choice of attention kernels."""
    threads: Threads
    """For reductions."""
    workspace_bytes: int
    """What cuBLAS keeps for each thread that multiplies matrices."""


def gpu_of(device: Device) -> Gpu:
    """`device` under the torch that is installed; one without cuDNN is taken for the CUDA build of its version."""
    version = torch_version()
    capability = compute_capability(device)
    return Gpu(
        name=device.name,
        setup=Setup(capability=capability, torch=version, cudnn=torch.backends.cudnn.version() or wheel_cudnn(version)),
        threads=Threads(sm_count=device.sm_count, per_sm=device.threads_per_sm),
        workspace_bytes=_workspace_bytes(device, capability, version),
    )


def compute_capability(device: Device) -> tuple[int, int]:
    """As a pair: (9, 0)."""
    major, _, minor = device.compute_capability.partition(".")
    return (int(major), int(minor)) if device.vendor == "nvidia" else _OF_AMD


def torch_version() -> tuple[int, int, int]:
    """Version of the installed torch: (2, 14, 1)."""
    major, minor, patch = re.findall(r"\d+", torch.__version__)[:3]
    return int(major), int(minor), int(patch)


def _workspace_bytes(device: Device, capability: tuple[int, int], version: tuple[int, int, int]) -> int:
    """`parseChosenWorkspaceSize` in aten/src/ATen/cuda/CublasHandlePool.cpp.

    4096 x 2 + 16 x 8 KiB; 32 MiB on Hopper, on Blackwell from torch 2.7, and on AMD, where gfx94 and gfx95 have 128.
    """
    if device.vendor == "amd":
        return (128 if device.compute_capability.startswith(("gfx94", "gfx95")) else 32) * 1024**2
    large = capability == (9, 0) or (capability >= (10, 0) and version >= (2, 7, 0))
    return 32 * 1024**2 if large else (4096 * 2 + 16 * 8) * 1024
