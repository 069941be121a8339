"""Which allocations of a CPU's step get memory that the system must map and clear anew: page faults cost time there.

glibc's malloc keeps what is freed, with two exceptions (malloc/malloc.c: `sysmalloc`, `systrim`):

    a block above 32 MiB         is mapped for itself, and given back when it is freed
    the heap's free end          is given back when it is above twice the largest block that stays in the heap

so that large temporaries, and the rise and fall of activations, fault in each step. PyTorch's CPU allocator passes each
block on to malloc. A GPU's allocator gives nothing back: nothing is fresh there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.trace import Event, Trace

MAP_BYTES = 32 * 2**20
"""Largest block of the heap: DEFAULT_MMAP_THRESHOLD_MAX on 64 bits."""
LEAST_MAP_BYTES = 128 * 2**10
"""Largest block of the heap before a larger one is freed: DEFAULT_MMAP_THRESHOLD."""
ROUNDS = 2
"""The state at the end of the first pass over a step is that in which the next begins."""


def fresh_bytes(trace: Trace) -> npt.NDArray[np.float64]:
    """Bytes of each op's allocations that are mapped anew, in a step that follows others."""
    found = np.zeros(len(trace.ops))
    if trace.origin.gpu is not None or trace.origin.device not in ("cpu", "fake"):
        return found
    sizes = [e.nbytes for op in trace.ops for e in op.events if LEAST_MAP_BYTES < e.nbytes <= MAP_BYTES]
    heap = _Heap(trim_bytes=2 * max(sizes, default=LEAST_MAP_BYTES))
    for event in trace.setup:
        heap.take(event)
    for _ in range(ROUNDS):
        for index, op in enumerate(trace.ops):
            found[index] = sum(heap.take(event) for event in op.events)
    return found


class _Heap:
    """Bytes in use and bytes mapped; what is freed is taken to lie at the end, as activations are freed in reverse."""

    def __init__(self, trim_bytes: int) -> None:
        self.used = self.mapped = 0
        self.trim_bytes = trim_bytes

    def take(self, event: Event) -> int:
        """Bytes that are mapped anew for it."""
        if abs(event.nbytes) > MAP_BYTES:
            return max(event.nbytes, 0)
        self.used += event.nbytes
        fresh = max(self.used - self.mapped, 0)
        self.mapped += fresh
        if self.mapped - self.used > self.trim_bytes:
            self.mapped = self.used
        return fresh
