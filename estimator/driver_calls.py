"""What the caching allocator asks of the driver and gives back: segments or pages, each call counted and listed.

    ask       a segment, or pages of an expandable one, as `alloc_block` of PyTorch's allocator does
    release   a whole free segment             unmap   the whole pages inside a free block

>>> calls = DriverCalls(AllocatorSettings(), Driver(), 2**40, AllocatorStats())
>>> block = calls.ask(Pool(small=False), 3 * 2**20, stream=0)
>>> block.size >> 20, [(event.action, event.nbytes >> 20) for event in calls.events], calls.stats.segment
(20, [('segment_alloc', 20)], 1)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dnnmem.estimator.allocator_settings import SMALL_SEGMENT_BYTES, AllocatorSettings, segment_bytes
from dnnmem.estimator.allocator_stats import AllocatorStats
from dnnmem.estimator.blocks import Block, Pool, take
from dnnmem.estimator.driver_memory import Driver
from dnnmem.estimator.expandable import grow, unmap
from dnnmem.estimator.segment import SegmentEvent


@dataclass(slots=True, eq=False)
class DriverCalls:
    """One allocator's way to its driver."""

    settings: AllocatorSettings
    """Decide sizes."""
    driver: Driver
    """Gives memory and addresses."""
    device_bytes: int
    """The GPU's total memory."""
    stats: AllocatorStats
    """What is counted."""
    events: list[SegmentEvent] = field(default_factory=list)
    """Calls that gave or took memory, in order."""

    @property
    def allowed_bytes(self) -> int | None:
        """What a memory fraction leaves the process; None without one."""
        fraction = self.settings.memory_fraction
        return None if fraction is None else int(fraction * self.device_bytes)

    def ask(self, pool: Pool, size: int, stream: int) -> Block | None:
        """A block of `size` bytes or more, in no pool; None if the driver refuses, or the memory fraction does."""
        nbytes = segment_bytes(size, self.settings)
        allowed = self.allowed_bytes
        if allowed is not None and self.stats.reserved_bytes + nbytes > allowed:
            return None
        if self.settings.expandable_segments:
            return self._expand(pool, size, stream)
        address = self.driver.reserve(nbytes)
        if address is None:
            return None
        self.events.append(SegmentEvent("segment_alloc", address, nbytes, stream))
        self.stats.grow_reserved(nbytes, 1)
        return Block(address, nbytes, stream, pool)

    def release(self, block: Block) -> None:
        """Give a whole free segment back."""
        take(block)
        self.driver.release(block.size)
        self.stats.segment -= 1
        self._returned("segment_free", block.address, block.size, block.stream)

    def unmap(self, block: Block) -> None:
        """Give the whole pages inside a free block back, if there are any."""
        address, nbytes = unmap(self.driver, block)
        if nbytes:
            self._returned("segment_unmap", address, nbytes, block.stream)

    def _expand(self, pool: Pool, size: int, stream: int) -> Block | None:
        def on_map(address: int, nbytes: int) -> None:
            self.events.append(SegmentEvent("segment_map", address, nbytes, stream))
            self.stats.grow_reserved(nbytes, 0)

        page = SMALL_SEGMENT_BYTES if pool.small else self.settings.large_segment_bytes
        return grow(
            self.driver, pool, stream=stream, size=size, page_bytes=page, device_bytes=self.device_bytes, on_map=on_map
        )

    def _returned(self, action: str, address: int, nbytes: int, stream: int) -> None:
        self.stats.num_device_free += 1
        self.stats.reserved_bytes -= nbytes
        self.events.append(SegmentEvent(action, address, nbytes, stream))
