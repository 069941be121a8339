"""PyTorch's CUDA caching allocator, simulated: which address a request gets, and what it makes the process reserve.

This follows `DeviceCachingAllocator` in PyTorch's `c10/cuda/CUDACachingAllocator.cpp`: a request is rounded to a block;
the smallest cached block of its pool and stream that holds it serves it, the rest is split off, free neighbours
merge; if none fits, the driver is asked for a segment; if that fails, the cache goes back to it and it is asked again.

    request -> block size -> pool -> best fit, split -------------------------> address
                                 `-> driver: new segment -> release and retry -'`-> OutOfMemoryError

Memory is *allocated* while the program holds its block (block sizes, as `torch.cuda.memory_allocated` counts),
*requested* by the program's own sizes, and *reserved* while it is in segments. Not simulated: blocks used on several
streams (`record_stream`), private pools of CUDA graphs.

>>> allocator = CachingAllocator()
>>> small, large = allocator.malloc(1000), allocator.malloc(3 * 2**20)
>>> allocator.allocated_bytes - 3 * 2**20, allocator.reserved_bytes >> 20
(1024, 22)
>>> allocator.free(small), allocator.free(large), allocator.reserved_bytes >> 20
(None, None, 22)
>>> allocator.empty_cache(), allocator.reserved_bytes
(None, 0)
"""

from __future__ import annotations

from collections.abc import Iterable

from dnnmem.estimator.allocator_settings import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    AllocatorSettings,
    block_bytes,
    segment_bytes,
)
from dnnmem.estimator.blocks import Block, Pool, best_fit, free_blocks, insert_after, merge, put, split, take
from dnnmem.estimator.driver_memory import Driver
from dnnmem.estimator.errors import DnnmemError, InternalError
from dnnmem.estimator.expandable import expanded_fit, grow, unmap
from dnnmem.estimator.segment import Segment, SegmentEvent, segment_at

_UNLIMITED_BYTES = 2**40


class OutOfMemoryError(DnnmemError):
    """No block, and nothing left to return to the driver; the numbers are those of PyTorch's own message."""

    exit_code = 1

    def __init__(
        self, *, tried_bytes: int, capacity_bytes: int, free_bytes: int, allocated: int, reserved: int
    ) -> None:
        """Args: the segment asked for, what the process may have, what the driver has left, the allocator's sums."""
        super().__init__(
            f"CUDA out of memory. Tried to allocate {_format(tried_bytes)}. GPU 0 has a total capacity of "
            f"{_format(capacity_bytes)} of which {_format(free_bytes)} is free. Of the allocated memory "
            f"{_format(allocated)} is allocated by PyTorch, and {_format(reserved - allocated)} is reserved by PyTorch "
            "but unallocated.",
            hint="a smaller batch, recomputation, sharding or a larger GPU",
        )
        self.tried_bytes = tried_bytes
        self.capacity_bytes = capacity_bytes
        self.free_bytes = free_bytes
        self.allocated_bytes = allocated
        self.reserved_bytes = reserved


class CachingAllocator:
    """One device's allocator. All sizes in bytes, all addresses made up (see `Driver`)."""

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity_bytes: int | None = None,
        *,
        device_bytes: int | None = None,
        driver: Driver | None = None,
    ) -> None:
        """Start with nothing reserved.

        Args: `capacity_bytes` is what the process can have (None = no limit), `device_bytes` the GPU's total memory,
        of which the memory fraction and the range of an expandable segment are parts (None = the capacity); `driver`
        replaces the model of addresses, and its capacity holds then.
        """
        self.settings = settings or AllocatorSettings()
        self.driver = driver or Driver(capacity_bytes=capacity_bytes)
        self.device_bytes = device_bytes or self.driver.capacity_bytes or _UNLIMITED_BYTES
        self.allocated_bytes = self.requested_bytes = self.reserved_bytes = 0
        self.peak_allocated_bytes = self.peak_requested_bytes = self.peak_reserved_bytes = 0
        self.reserved_at_peak_allocated_bytes = 0
        self.retries = 0
        self.segment_events: list[SegmentEvent] = []
        self._small, self._large = Pool(small=True), Pool(small=False)
        self._live: dict[int, Block] = {}
        rounding, fraction = self.settings.max_non_split_rounding_bytes, self.settings.memory_fraction
        self._rounding = self.settings.large_segment_bytes if rounding is None else rounding
        self._allowed = None if fraction is None else int(fraction * self.device_bytes)
        self._collects = self._allowed is not None and self.settings.garbage_collection_threshold > 0

    def malloc(self, nbytes: int, stream: int = 0) -> int:
        """Address of a new block; 0 for 0 bytes, which take none. Raises `OutOfMemoryError`."""
        if not nbytes:
            return 0
        size = block_bytes(nbytes, self.settings)
        pool = self._small if size <= SMALL_BYTES else self._large
        block = self._cached(pool, size, stream) or self._from_driver(pool, size, stream)
        if self._splits(block, size):
            block = split(block, size)
        block.allocated = True
        block.requested = nbytes
        self._live[block.address] = block
        self.requested_bytes += nbytes
        self.allocated_bytes += block.size
        self.peak_requested_bytes = max(self.peak_requested_bytes, self.requested_bytes)
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
            self.reserved_at_peak_allocated_bytes = self.reserved_bytes
        return block.address

    def free(self, address: int) -> None:
        """Take back the block at `address`, which `malloc` gave; 0 is ignored. Raises `InternalError` for any other."""
        if not address:
            return
        block = self._live.pop(address, None)
        if block is None:
            raise InternalError(f"address {address:#x} is freed, but no live block begins there")
        block.allocated = False
        self.allocated_bytes -= block.size
        self.requested_bytes -= block.requested
        block.requested = 0
        merge(block, block.before)
        merge(block, block.after)
        put(block)

    def empty_cache(self) -> None:
        """Return every free segment, or free page, to the driver (`torch.cuda.empty_cache`)."""
        for pool in (self._large, self._small):
            for block in list(free_blocks(pool)):
                if block.pages is not None:
                    self._unmap(block)
                elif block.whole:
                    self._release(block)

    def reset_peak(self) -> None:
        """Begin the peaks anew from what is held now."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_requested_bytes = self.requested_bytes
        self.peak_reserved_bytes = self.reserved_at_peak_allocated_bytes = self.reserved_bytes

    def segments(self) -> tuple[Segment, ...]:
        """All segments by address, each with its blocks."""
        free = (block for pool in (self._small, self._large) for block in free_blocks(pool))
        heads = (b for b in (*self._live.values(), *free) if b.before is None or not b.before.mapped)
        return tuple(sorted((segment_at(head) for head in heads), key=lambda s: s.address))

    def adopt(self, segments: Iterable[Segment]) -> None:
        """Continue from another allocator's state: take over its plain segments and their blocks, live and free."""
        for segment in segments:
            if segment.expandable:
                raise InternalError(f"segment {segment.address:#x} is expandable and cannot be adopted")
            pool = self._small if segment.small else self._large
            last: Block | None = None
            for info in segment.blocks:
                block = Block(info.address, info.nbytes, segment.stream, pool, allocated=info.allocated)
                if last is not None:
                    insert_after(last, block)
                last = block
                self._adopt_block(block, info.requested_bytes)
            self.driver.used_bytes += segment.nbytes
            self.reserved_bytes += segment.nbytes
        self.reset_peak()

    def _adopt_block(self, block: Block, requested: int) -> None:
        if not block.allocated:
            put(block)
            return
        block.requested = requested
        self._live[block.address] = block
        self.allocated_bytes += block.size
        self.requested_bytes += requested

    def _cached(self, pool: Pool, size: int, stream: int) -> Block | None:
        """`get_free_block`: the cached block that serves, out of its pool."""
        if self._collects:
            pool.searches += 1
        block = best_fit(pool, stream, size)
        if block is None:
            return None
        if block.pages is not None:
            block = expanded_fit(pool, block)
        limit = self.settings.max_split_bytes
        if limit is not None and size < limit <= block.size:
            return None
        if limit is not None and limit <= size <= block.size - self._rounding:
            return None
        take(block)
        return block

    def _splits(self, block: Block, size: int) -> bool:
        """`should_split`: whether the rest of the block is worth a block of its own."""
        rest = block.size - size
        if block.pool.small or self.settings.expandable_segments:
            return rest >= MIN_BLOCK_BYTES
        limit = self.settings.max_split_bytes
        return rest > SMALL_BYTES and (limit is None or size < limit)

    def _from_driver(self, pool: Pool, size: int, stream: int) -> Block:
        """A new block from the driver, after giving back cached ones if need be. Raises `OutOfMemoryError`."""
        if self._collects:
            self._collect()
        block = self._ask(pool, size, stream)
        if block is None and self._release_oversize(pool, size, stream):
            block = self._ask(pool, size, stream)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._ask(pool, size, stream)
        if block is None:
            raise self._out_of_memory(size)
        return block

    def _out_of_memory(self, size: int) -> OutOfMemoryError:
        capacity = self.driver.capacity_bytes if self.driver.capacity_bytes is not None else self.device_bytes
        return OutOfMemoryError(
            tried_bytes=segment_bytes(size, self.settings),
            capacity_bytes=capacity,
            free_bytes=capacity - self.driver.used_bytes,
            allocated=self.allocated_bytes,
            reserved=self.reserved_bytes,
        )

    def _ask(self, pool: Pool, size: int, stream: int) -> Block | None:
        """`alloc_block`: one call of the driver; None if it refuses, or the memory fraction does."""
        nbytes = segment_bytes(size, self.settings)
        if self._allowed is not None and self.reserved_bytes + nbytes > self._allowed:
            return None
        if self.settings.expandable_segments:
            return self._expand(pool, size, stream)
        address = self.driver.reserve(nbytes)
        if address is None:
            return None
        self._reserve("segment_alloc", address, nbytes, stream)
        return Block(address, nbytes, stream, pool)

    def _expand(self, pool: Pool, size: int, stream: int) -> Block | None:
        page = SMALL_SEGMENT_BYTES if pool.small else self.settings.large_segment_bytes
        return grow(
            self.driver,
            pool,
            stream=stream,
            size=size,
            page_bytes=page,
            device_bytes=self.device_bytes,
            on_map=lambda address, nbytes: self._reserve("segment_map", address, nbytes, stream),
        )

    def _reserve(self, action: str, address: int, nbytes: int, stream: int) -> None:
        self.segment_events.append(SegmentEvent(action, address, nbytes, stream))
        self.reserved_bytes += nbytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _release(self, block: Block) -> None:
        """`release_block`: give a whole free segment back."""
        take(block)
        self.driver.release(block.size)
        self.reserved_bytes -= block.size
        self.segment_events.append(SegmentEvent("segment_free", block.address, block.size, block.stream))

    def _unmap(self, block: Block) -> None:
        address, nbytes = unmap(self.driver, block)
        if nbytes:
            self.reserved_bytes -= nbytes
            self.segment_events.append(SegmentEvent("segment_unmap", address, nbytes, block.stream))

    def _release_oversize(self, pool: Pool, size: int, stream: int) -> bool:
        """`release_available_cached_blocks`: give back unsplittable blocks, the largest first, until `size` is free."""
        limit = self.settings.max_split_bytes
        if limit is None or self.settings.expandable_segments:
            return False
        wanted = max(size, limit)
        block = best_fit(pool, stream, wanted)
        if block is not None:
            self._release(block)
            return True
        released = 0
        for _, _, candidate in reversed(list(pool.free.get(stream, ()))):
            if released >= wanted or candidate.size < limit:
                break
            released += candidate.size
            self._release(candidate)
        return released >= wanted

    def _collect(self) -> None:
        """`garbage_collect_cached_blocks`: give back idle segments, the older half first, down to the threshold."""
        threshold = int(self.settings.garbage_collection_threshold * (self._allowed or 0))
        target = self.reserved_bytes - threshold
        idle = [block for block in free_blocks(self._large) if block.whole]
        age = sum(self._large.searches - block.born for block in idle)
        freed, reclaimed = True, 0
        while target > reclaimed and freed and idle:
            mean = age / len(idle)
            old = [block for block in idle if self._large.searches - block.born >= mean]
            for block in old:
                age -= self._large.searches - block.born
                reclaimed += block.size
                self._release(block)
            idle = [block for block in idle if block not in old]
            freed = bool(old)


def _format(nbytes: int) -> str:
    """`format_size` of PyTorch."""
    for unit, name in ((2**10, "bytes"), (2**20, "KiB"), (2**30, "MiB")):
        if nbytes <= unit:
            return f"{nbytes} bytes" if name == "bytes" else f"{nbytes / (unit / 1024):.2f} {name}"
    return f"{nbytes / 2**30:.2f} GiB"
