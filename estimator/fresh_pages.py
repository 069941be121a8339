"""Which allocations of a CPU's step get memory that the system must map and clear anew: page faults cost time there.

glibc's malloc keeps what is freed, with two exceptions (malloc/malloc.c: `sysmalloc`, `systrim`):

    a block above 32 MiB         is mapped for itself, and given back when it is freed
    the heap's free end          is given back when it is above twice the largest block that it has held

so that large temporaries fault in each step, and activations in so far as they lie at the heap's end. PyTorch's CPU
allocator passes each block on to malloc. A GPU's allocator gives nothing back: nothing is fresh there.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.trace import Event, Trace

MAP_BYTES = 32 * 2**20
"""Largest block of the heap: DEFAULT_MMAP_THRESHOLD_MAX on 64 bits."""
ROUNDS = 5
"""Steps until the heap's holes repeat; the last one counts."""
_HEADER = 80
"""Bytes that a block takes beside its own: malloc's header, and what alignment to 64 costs."""


def fresh_bytes(trace: Trace) -> npt.NDArray[np.float64]:
    """Bytes of each op's allocations that are mapped anew, in a step that follows others."""
    found = np.zeros(len(trace.ops))
    if trace.origin.gpu is not None or trace.origin.device not in ("cpu", "fake"):
        return found
    heap = _Heap(2 * max((e.nbytes for op in trace.ops for e in op.events if e.nbytes <= MAP_BYTES), default=0))
    for event in trace.setup:
        heap.take(event)
    for _ in range(ROUNDS):
        for index, op in enumerate(trace.ops):
            found[index] = sum(heap.take(event) for event in op.events)
    return found


class _Heap:
    """Best fit with holes that grow together, the end of the heap being the last resort."""

    def __init__(self, trim_bytes: int) -> None:
        self.trim_bytes = trim_bytes
        self.end = self.mapped = 0
        self.where: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self.holes: list[tuple[int, int]] = []

    def take(self, event: Event) -> int:
        """Bytes that are mapped anew for it."""
        if abs(event.nbytes) > MAP_BYTES:
            return max(event.nbytes, 0)
        size = abs(event.nbytes) + _HEADER
        if event.nbytes < 0:
            self._free(self.where.pop(event.storage, None), size)
            return 0
        at = bisect_left(self.holes, (size, 0))
        if at < len(self.holes):
            room, start = self.holes[at]
            self._drop(start, room)
            if room - size > _HEADER:
                self._add(start + size, room - size)
        else:
            start, self.end = self.end, self.end + size
        self.where[event.storage] = start
        fresh = max(self.end - self.mapped, 0)
        self.mapped += fresh
        return fresh

    def _free(self, start: int | None, size: int) -> None:
        if start is None:
            return
        if start + size in self.starts:
            room = self.starts[start + size]
            self._drop(start + size, room)
            size += room
        if start in self.ends:
            before = self.ends[start]
            size += self.starts[before]
            self._drop(before, self.starts[before])
            start = before
        if start + size < self.end:
            self._add(start, size)
            return
        self.end = start
        if self.mapped - self.end > self.trim_bytes:
            self.mapped = self.end

    def _add(self, start: int, size: int) -> None:
        self.starts[start] = size
        self.ends[start + size] = start
        insort(self.holes, (size, start))

    def _drop(self, start: int, size: int) -> None:
        del self.starts[start], self.ends[start + size]
        del self.holes[bisect_left(self.holes, (size, start))]
