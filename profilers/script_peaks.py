"""Peaks of the caching allocator by step and over the whole run, unseen by a script that reads and resets its own.

The allocator has one set of peaks. They are reset here at every step, so what the script would have read is kept and
handed to it: `torch.cuda.max_memory_allocated()` and the like answer as if nobody else asked.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from dnnmem.profilers.script_result import DeviceMemory, StepPeak

_READERS = (
    ("_cuda_memoryStats", "_cuda_resetPeakMemoryStats"),
    ("_accelerator_getDeviceStats", "_accelerator_resetPeakStats"),
)
"""Functions of torch._C by which programs read and reset peaks."""

_Peaks = dict[tuple[str, str], int]


class PeakMeter:
    """Takes the place of torch's readers of the allocator's statistics."""

    def __init__(self) -> None:
        """Start; torch is loaded, CUDA need not be initialised."""
        self._run: dict[int, _Peaks] = defaultdict(dict)
        self._script: dict[int, _Peaks] = defaultdict(dict)
        self._steps: dict[int, list[StepPeak]] = defaultdict(list)
        self._outside: dict[int, tuple[int, int | None]] = {}
        self._read: Callable[[int], dict[str, Any]] = torch._C._cuda_memoryStats
        self._reset: Callable[[int], None] = torch._C._cuda_resetPeakMemoryStats
        self._nccl_bytes = _nccl_reader()
        for reader, resetter in _READERS:
            if hasattr(torch._C, reader) and hasattr(torch._C, resetter):
                setattr(torch._C, reader, self._serve)
                setattr(torch._C, resetter, self._forget)

    def end_step(self) -> None:
        """A training step is over: note its peaks."""
        for device in self._devices():
            peaks = self._fold(device)
            names = ("allocated_bytes", "reserved_bytes", "requested_bytes")
            self._steps[device].append(StepPeak(**{name: peaks[name, "all"] for name in names}))
            if self._run[device]["reserved_bytes", "all"]:
                self._note_outside(device)

    def memory(self) -> tuple[DeviceMemory, ...]:
        """What each GPU needed so far; GPUs that never held anything are left out."""
        found = []
        for device in self._devices():
            self._fold(device)
            if self._run[device]["reserved_bytes", "all"]:
                found.append(self._describe(device))
        return tuple(found)

    def _describe(self, device: int) -> DeviceMemory:
        peaks, now = self._run[device], self._read(device)
        self._note_outside(device)
        outside, nccl = self._outside[device]
        return DeviceMemory(
            device=device,
            name=torch.cuda.get_device_name(device),
            allocated_bytes=peaks["allocated_bytes", "all"],
            requested_bytes=peaks["requested_bytes", "all"],
            reserved_bytes=peaks["reserved_bytes", "all"],
            segments=peaks["segment", "all"],
            alloc_retries=now["num_alloc_retries"],
            out_of_memory_errors=now["num_ooms"],
            outside_bytes=outside,
            nccl_bytes=nccl,
            total_bytes=torch.cuda.mem_get_info(device)[1],
            steps=tuple(self._steps[device]),
        )

    def _note_outside(self, device: int) -> None:
        """Keep the most that is in use outside the allocator: a script may give up its communicators before its end."""
        free, total = torch.cuda.mem_get_info(device)
        outside = max(0, total - free - self._read(device)["reserved_bytes"]["all"]["current"])
        nccl = self._nccl_bytes(device) if self._nccl_bytes else None
        if device not in self._outside or outside > self._outside[device][0]:
            self._outside[device] = outside, nccl

    def _devices(self) -> range:
        return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)

    def _fold(self, device: int) -> _Peaks:
        """Peaks since the last fold; starts them anew."""
        peaks = {key: pool["peak"] for key, pool in _pools(self._read(device))}
        self._reset(device)
        for kept in (self._run[device], self._script[device]):
            for key, peak in peaks.items():
                kept[key] = max(peak, kept.get(key, 0))
        return peaks

    def _serve(self, device: int) -> dict[str, Any]:
        """The statistics, with the peaks since the script's own last reset."""
        stats = self._read(device)
        for key, pool in _pools(stats):
            pool["peak"] = max(pool["peak"], self._script[device].get(key, 0))
        return stats

    def _forget(self, device: int) -> None:
        """What the script calls to reset its peaks."""
        self._fold(device)
        self._script[device].clear()


def _nccl_reader() -> Callable[[int], int] | None:
    """What says how many bytes NCCL holds on a virtual GPU; None elsewhere."""
    reader = getattr(ctypes.CDLL(None), "dnnmem_nccl_bytes", None)
    if reader is not None:
        reader.restype = ctypes.c_size_t  # more than 2 GiB do not fit into ctypes' int
    return reader


def _pools(stats: dict[str, Any]) -> list[tuple[tuple[str, str], dict[str, int]]]:
    """Entries of the statistics that have a peak."""
    return [
        ((name, pool), values)
        for name, pools in stats.items()
        if isinstance(pools, dict)
        for pool, values in pools.items()
        if isinstance(values, dict) and "peak" in values
    ]
