"""Where a request's child process runs, as far as the parent decides it: on the real machine, or on a virtual GPU.

The virtual GPU has to be there before torch is loaded, so the parent chooses it; for a fake run as some GPU it starts
the process that knows cuDNN's workspaces. `auto` means: the machine's own GPU if
NVML sees one, else a virtual one if it can be had, else whatever the child finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dnnmem.estimator.device import Device
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers import monitor
from dnnmem.profilers.request import Request
from dnnmem.profilers.virtual_gpu.cudnn_service import VARIABLE, address_for
from dnnmem.profilers.virtual_gpu.launch import prepare, unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How the child is started."""

    request: Request
    """With the device that was chosen."""
    environment: Mapping[str, str]
    """All of the child's environment."""


def place(
    request: Request,
    base: Mapping[str, str],
    *,
    gpu: Device | None,
    cache: Path | None,
    error_file: Path,
    say: Callable[[str], None],
) -> Place:
    """Settle where `request` runs; `say` hears what a person should know of it.

    Raises `UnsupportedError` if a virtual GPU was asked for by name and cannot be had.
    """
    plain = Place(request=request, environment=base)
    if request.device == "virtual":
        shown = gpu or (find_device(request.gpu) if request.gpu else None)
        launch = prepare(shown, base, cache=cache, error_file=error_file)
    elif request.device == "auto" and not _is_served_otherwise(request, gpu):
        try:
            launch = prepare(gpu or request.gpu, base, cache=cache, error_file=error_file)
        except UnsupportedError as error:
            say(f"the virtual GPU is left out: {error.message}")
            return plain
    else:
        return replace(plain, environment={**base, **_workspaces(request, gpu, cache)})
    if launch.note:
        say(launch.note)
    return Place(request=replace(request, device="virtual"), environment=launch.environment)


def _is_served_otherwise(request: Request, gpu: Device | None) -> bool:
    """Whether `auto` has nothing to do with virtual GPUs here: a real one is there, or another vendor's is meant."""
    meant = gpu or (find_device(request.gpu) if request.gpu else None)
    foreign = meant is not None and meant.vendor != "nvidia"
    return foreign or monitor.read().used_bytes is not None or unavailable() is not None


def _workspaces(request: Request, gpu: Device | None, cache: Path | None) -> dict[str, str]:
    """Where a fake run for a GPU asks for cuDNN's workspaces; nothing if nobody can be asked."""
    meant = gpu or (find_device(request.gpu) if request.gpu else None)
    if request.device != "fake" or meant is None:
        return {}
    try:
        return {VARIABLE: address_for(meant, cache)}
    except UnsupportedError:
        return {}  # the report says why
