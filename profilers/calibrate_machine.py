"""What the machine that is calibrated says of itself, and what its memory and arithmetic reach at best.

A CPU's malloc gives large blocks back to the system, so that a large output costs page faults at each call. While
operators are timed, malloc is told to keep all; the faults are timed by themselves, and `fresh_pages` counts them.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 2**30
"""Blocks up to this size stay in the heap, and as much of its end."""
_FAULT_BYTES = 64 * 2**20


def describe(device: str) -> dict[str, Any]:
    """Name and sizes of the machine; bytes."""
    if device == "cuda":
        p = torch.cuda.get_device_properties(0)
        return {
            "name": p.name,
            "vendor": "nvidia" if torch.version.cuda else "amd",
            "compute_capability": f"{p.major}.{p.minor}",
            "units": p.multi_processor_count,
            "count": torch.cuda.device_count(),
            "memory_bytes": p.total_memory,
            "cache_bytes": p.L2_cache_size,
        }
    return {
        "name": _cpu_name(),
        "vendor": "cpu",
        "compute_capability": "",
        "units": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "cache_bytes": _cache_bytes(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cache_bytes() -> int:
    """Of the last level; 1 MiB where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text("utf-8")
        return int(size.strip().removesuffix("K")) * 1024
    return 2**20


def keep_memory() -> None:
    """Let malloc give nothing back from here on; elsewhere than in glibc, nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def fault_rate() -> float:
    """Seconds of a byte's page fault, by the process's CPU time: first write to new memory less the second one.

    With it goes what the system needs to take the page back.
    """
    best = float("inf")
    for _ in range(3):
        memory = mmap.mmap(-1, _FAULT_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block = torch.frombuffer(memory, dtype=torch.uint8)
        first, second = _filled(block), _filled(block)
        del block
        before = time.process_time()
        memory.close()
        best = min(best, max(first - second, 0.0) + time.process_time() - before)
    return best / _FAULT_BYTES


def _filled(block: torch.Tensor) -> float:
    before = time.process_time()
    block.fill_(1)
    return time.process_time() - before


def best_rates(curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Highest flops a second of products by element type, and bytes a second of the largest plain traffic."""
    found: dict[str, float] = {}
    for name, points in curves.items():
        dtype, _, rest = name.rpartition("gemm-")
        if rest and "batched" not in name:
            key = dtype.rstrip("-") or "float32"
            found[key] = max(found.get(key, 0.0), *(size / seconds for size, seconds in points))
    size, seconds = max(curves["stream"])
    return {**{f"{key}_flops_per_s": rate for key, rate in found.items()}, "memory_bytes_per_s": size / seconds}
