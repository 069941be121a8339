"""How long one call takes on a device, told from many: the clock and the repetition of `dnnmem calibrate`.

    cuda               CUDA events around calls that wait behind a sleeping kernel, so that the host's pace is hidden
    cpu, one thread    the process's CPU time: another process that takes the core away does not count
    cpu, more threads  wall time, since threads that wait for each other burn CPU time
                       both with caches emptied before each call: a step touches more between two uses than they hold

The least of several blocks of calls counts: whatever disturbs a block only adds to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

BLOCKS = 6
"""Blocks of calls, of which the quickest counts."""
BLOCK_SECONDS = 0.002
"""About how long a block of calls takes, or a single call does."""
MOST_SECONDS = 0.08
"""A case that has taken this long is measured well enough by the blocks it had."""
_MOST_CALLS = 2000
_SLEEP_CYCLES = 20_000_000
"""About 10 ms on a GPU: enough for the host to issue a block."""
_QUEUE = 200
"""Calls that the driver queues without waiting."""


class Clock(Protocol):
    """Times `calls` calls."""

    most_calls: int
    """Calls that a block may have."""

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """Seconds of all of them together."""
        ...


class CpuClock:
    """CPU time of one thread, or wall time of several."""

    most_calls = 1

    def __init__(self, threads: int, *, cold_bytes: int = 0) -> None:
        """`threads`: those that torch's operators use; `cold_bytes` are written before each call."""
        self._now = time.process_time if threads == 1 else time.perf_counter
        self._evict = torch.zeros(cold_bytes // 4) if cold_bytes else None

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """As the module says."""
        total = 0.0
        for _ in range(calls):
            if self._evict is not None:
                self._evict.add_(1)
            before = self._now()
            run()
            total += self._now() - before
        return total


class CudaClock:
    """CUDA events on the current stream."""

    most_calls = _QUEUE

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """As the module says."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(_SLEEP_CYCLES)
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3


class WallClock:
    """Wall time with the device's work finished at both ends: for copies, collectives and whole steps."""

    most_calls = _MOST_CALLS

    def __init__(self, device: str) -> None:
        """`device`: `cpu` or `cuda`."""
        self._wait: Callable[[], None] = _synchronize if device == "cuda" else _nothing

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """As the module says."""
        self._wait()
        before = time.perf_counter()
        for _ in range(calls):
            run()
        self._wait()
        return time.perf_counter() - before


def _synchronize() -> None:
    torch.cuda.synchronize()


def _nothing() -> None:
    pass


def seconds_of(run: Callable[[], object], clock: Clock) -> float:
    """Seconds of one call of `run`, warmed up."""
    run()
    once = min(max(clock.seconds(run, 1), 1e-7) for _ in range(2))
    calls = max(1, min(clock.most_calls, int(BLOCK_SECONDS / once)))
    best, spent = once, once
    for _ in range(BLOCKS):
        block = clock.seconds(run, calls)
        best, spent = min(best, block / calls), spent + block
        if spent > MOST_SECONDS:
            break
    return best


def seconds_once(run: Callable[[], object]) -> float:
    """Runs it and says 1: for a rehearsal, where times mean nothing."""
    run()
    return 1.0
