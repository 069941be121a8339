"""What NVML says of a GPU: memory in use by whom, clocks, temperature, throttling. Without NVML it says nothing.

`pynvml` here is the module of the distribution nvidia-ml-py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that slow training down (nvml.h, nvmlClocksEventReason*)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a GPU; None = NVML does not tell."""

    used_bytes: int | None = None
    """All memory in use."""
    free_bytes: int | None = None
    """Memory not in use."""
    own_bytes: int | None = None
    """In use by this process, context included."""
    others_bytes: int | None = None
    """In use by other processes that NVML can see."""
    sm_clock_mhz: int | None = None
    """Clock of the SMs."""
    temperature_c: int | None = None
    """Of the GPU."""
    throttled: str = ""
    """Why it is slowed down, empty if it is not."""


def read(index: int = 0) -> Reading:
    """Look at GPU `index`, as CUDA_VISIBLE_DEVICES leaves it to the caller to count."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no NVML in whatever way: it says nothing
        return Reading()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        own, others = _processes(pynvml, handle)
        return Reading(
            used_bytes=int(memory.used),
            free_bytes=int(memory.free),
            own_bytes=own,
            others_bytes=others,
            sm_clock_mhz=_ask(pynvml, "nvmlDeviceGetClockInfo", handle, 1),
            temperature_c=_ask(pynvml, "nvmlDeviceGetTemperature", handle, 0),
            throttled=_throttled(pynvml, handle),
        )
    except pynvml.NVMLError:
        return Reading()
    finally:
        pynvml.nvmlShutdown()


def gpu_names() -> tuple[str, ...]:
    """What this machine's GPUs call themselves; empty where NVML does not say."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no NVML in whatever way: it says nothing
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _processes(pynvml: object, handle: object) -> tuple[int | None, int | None]:
    found = getattr(pynvml, "nvmlDeviceGetComputeRunningProcesses")  # noqa: B009 - untyped module
    try:
        processes = [(p.pid, p.usedGpuMemory) for p in found(handle)]
    except Exception:  # noqa: BLE001 - no permission (MIG, containers) or not supported
        return None, None
    own = [used for pid, used in processes if pid == os.getpid() and used is not None]
    others = [used for pid, used in processes if pid != os.getpid() and used is not None]
    return (sum(own) if own else None), sum(others)


def _ask(pynvml: object, name: str, *args: object) -> int | None:
    try:
        return int(getattr(pynvml, name)(*args))
    except Exception:  # noqa: BLE001 - not supported on this GPU
        return None


def _throttled(pynvml: object, handle: object) -> str:
    bits = _ask(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle) or 0
    return ", ".join(name for bit, name in THROTTLE_REASONS.items() if bits & bit)
