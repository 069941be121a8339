"""PyTorch's CUDA caching allocator, simulated: which address a request gets, and what it makes the process reserve.

This follows `DeviceCachingAllocator` in PyTorch's `c10/cuda/CUDACachingAllocator.cpp`: a request is rounded to a block;
the smallest cached block of its pool and stream that holds it serves it, the rest is split off, free neighbours
merge; if none fits, the driver is asked for a segment; if that fails, the cache goes back to it and it is asked again.

    request -> block size -> pool -> best fit, split -------------------------> address
                                 `-> driver: new segment -> release and retry -'`-> OutOfMemoryError

Memory is *allocated* while the program holds its block (block sizes, as `torch.cuda.memory_allocated` counts),
*requested* by the program's own sizes, *active* until no stream uses it any more, *reserved* while it is in segments.

>>> allocator = CachingAllocator()
>>> small, large = allocator.malloc(1000), allocator.malloc(3 * 2**20)
>>> allocator.allocated_bytes - 3 * 2**20, allocator.reserved_bytes >> 20
(1024, 22)
>>> allocator.record_stream(large, stream=7)
>>> allocator.free(small), allocator.free(large), allocator.reserved_bytes >> 20, allocator.stats.active_bytes >> 20
(None, None, 22, 3)
>>> allocator.empty_cache(), allocator.reserved_bytes
(None, 0)
"""

from __future__ import annotations

from collections.abc import Iterable

from dnnmem.estimator.adoption import chain_blocks, ranges
from dnnmem.estimator.allocator_settings import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    AllocatorSettings,
    block_bytes,
    segment_bytes,
)
from dnnmem.estimator.allocator_stats import AllocatorStats
from dnnmem.estimator.allocator_versions import AllocatorRules
from dnnmem.estimator.blocks import Block, Pool, best_fit, free_blocks, merge, put, put_unmapped, split, take, take_fit
from dnnmem.estimator.driver_calls import DriverCalls
from dnnmem.estimator.driver_memory import Driver
from dnnmem.estimator.errors import InternalError
from dnnmem.estimator.expandable import expanded_fit
from dnnmem.estimator.out_of_memory import OutOfMemoryError
from dnnmem.estimator.private_pools import PrivatePools
from dnnmem.estimator.reclaim import aged, oversize
from dnnmem.estimator.segment import Segment, SegmentEvent, segment_at

_UNLIMITED_BYTES = 2**40


class CachingAllocator:
    """One device's allocator. All sizes in bytes, all addresses made up (see `Driver`)."""

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity_bytes: int | None = None,
        *,
        device_bytes: int | None = None,
        driver: Driver | None = None,
        rules: AllocatorRules | None = None,
    ) -> None:
        """Start with nothing reserved.

        Args: `capacity_bytes` is what the process can have (None = no limit), `device_bytes` the GPU's total memory,
        of which the memory fraction and the range of an expandable segment are parts (None = the capacity); `driver`
        replaces the model of addresses, and its capacity holds then; `rules` are those of a release (`rules_of`).
        """
        self.settings = settings or AllocatorSettings()
        self.driver = driver or Driver(capacity_bytes=capacity_bytes)
        self.device_bytes = device_bytes or self.driver.capacity_bytes or _UNLIMITED_BYTES
        self.stats = AllocatorStats()
        self.private = PrivatePools(rules=rules or AllocatorRules())
        self._calls = DriverCalls(self.settings, self.driver, self.device_bytes, self.stats)
        self._small, self._large = Pool(small=True), Pool(small=False)
        self._live: dict[int, Block] = {}
        self._streams: dict[int, set[int]] = {}
        self._waiting: dict[int, Block] = {}
        self._requested: dict[int, Block] = {}
        rounding = self.settings.max_non_split_rounding_bytes
        self._rounding = self.settings.large_segment_bytes if rounding is None else rounding
        self._collects = self._calls.allowed_bytes is not None and self.settings.garbage_collection_threshold > 0
        self._rounds_up = any(self.settings.roundup_power2_divisions)
        self._is_plain = not (self._collects or self.settings.expandable_segments or self.settings.max_split_bytes)

    @property
    def allocated_bytes(self) -> int:
        """`torch.cuda.memory_allocated`."""
        return self.stats.allocated_bytes

    @property
    def requested_bytes(self) -> int:
        """What the program asked for and holds."""
        return self.stats.requested_bytes

    @property
    def reserved_bytes(self) -> int:
        """`torch.cuda.memory_reserved`."""
        return self.stats.reserved_bytes

    @property
    def segment_events(self) -> list[SegmentEvent]:
        """All calls of the driver that gave or took memory, in order."""
        return self._calls.events

    def malloc(self, nbytes: int, stream: int = 0) -> int:
        """Address of a new block; 0 for 0 bytes, which take none. Raises `OutOfMemoryError`."""
        if not nbytes:
            return 0
        if self._waiting and not self.private.defers(stream):
            self._finish_waiting()
        rounded = -(-nbytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        size = block_bytes(nbytes, self.settings) if self._rounds_up else rounded
        pool = self._pool(size, stream)
        cached = take_fit(pool, stream, size) if self._is_plain else self._cached(pool, size, stream)
        block = self._cut(cached or self._from_driver(pool, size, stream), size)
        block.allocated = True
        block.requested = nbytes
        self._live[block.address] = block
        self.stats.grow(nbytes, block.size)
        return block.address

    def record_stream(self, address: int, stream: int) -> None:
        """Say that `stream` uses the block at `address` (`Tensor.record_stream`): it is free once that is done, too.

        Raises `InternalError` if no live block begins there.
        """
        if address not in self._live:
            raise InternalError(f"stream {stream} is to use {address:#x}, but no live block begins there")
        if stream != self._live[address].stream:
            self._streams.setdefault(address, set()).add(stream)

    def free(self, address: int) -> None:
        """Take back the block at `address`, which `malloc` gave; 0 is ignored. Raises `InternalError` for any other.

        Work of other streams that use it is taken to be done when the next request comes.
        """
        if not address:
            return
        block = self._let_go(address)
        if self._streams and self._streams.pop(address, set()):
            self._waiting[address] = block
        else:
            self._to_pool(block)

    def request_free(self, address: int) -> None:
        """The first half of `free`: the program does not hold the block any longer, but it serves nobody yet.

        Raises `InternalError` if no live block begins there.
        """
        self._requested[address] = self._let_go(address)
        self._streams.pop(address, None)

    def complete_free(self, address: int) -> None:
        """The second half: no stream uses the block any longer. Raises `InternalError` without the first one."""
        block = self._requested.pop(address, None)
        if block is None:
            raise InternalError(f"the free of {address:#x} is complete, but nobody has requested it")
        self._to_pool(block)

    def _let_go(self, address: int) -> Block:
        block = self._live.pop(address, None)
        if block is None:
            raise InternalError(f"address {address:#x} is freed, but no live block begins there")
        self.stats.allocation -= 1
        self.stats.allocated_bytes -= block.size
        return block

    def _to_pool(self, block: Block) -> None:
        """`free_block`."""
        stats = self.stats
        stats.active -= 1
        stats.active_bytes -= block.size
        stats.requested_bytes -= block.requested
        block.allocated = False
        block.requested = 0
        before, after = merge(block, block.before), merge(block, block.after)
        put(block)
        if block.pages is None:
            pieces = (block.before is not None or block.after is not None) - bool(before) - bool(after)
            nbytes = (0 if block.whole else block.size) - before - after
            stats.change_split(pieces, nbytes)

    def empty_cache(self) -> None:
        """Return every free segment, or free page, to the driver (`torch.cuda.empty_cache`)."""
        self._finish_waiting()
        pools = [self._large, self._small]
        for idle in self.private.idle():
            pools += [idle.small, idle.large]
        for pool in pools:
            for block in list(free_blocks(pool)):
                if block.pages is not None:
                    self._calls.unmap(block)
                elif block.whole:
                    self._calls.release(block)

    def reset_peak(self) -> None:
        """Begin the peaks anew from what is held now."""
        self.stats.reset_peak()

    def segments(self) -> tuple[Segment, ...]:
        """All segments by address, each with its blocks."""
        pools = [self._small, self._large]
        for private in self.private.pools.values():
            pools += [private.small, private.large]
        free = (block for pool in pools for block in free_blocks(pool))
        held = (*self._live.values(), *self._waiting.values(), *self._requested.values(), *free)
        heads = (b for b in held if b.before is None or not b.before.mapped)
        return tuple(sorted((segment_at(head) for head in heads), key=lambda s: s.address))

    def adopt(self, segments: Iterable[Segment]) -> None:
        """Continue from another allocator's state: take over its segments and their blocks, live and free."""
        for range_ in ranges(segments, self.settings, self.device_bytes):
            private = self.private.at(range_.pool) if range_.pool else None
            small, large = (private.small, private.large) if private else (self._small, self._large)
            for block in chain_blocks(range_, small if range_.small else large):
                self._adopt_block(block)
            self.driver.used_bytes += range_.nbytes
            self.stats.reserved_bytes += range_.nbytes
            self.stats.segment += not range_.expandable
        self.reset_peak()

    def _adopt_block(self, block: Block) -> None:
        if not block.mapped:
            put_unmapped(block)
        elif not block.allocated:
            put(block)
            if block.pages is None and not block.whole:
                self.stats.change_split(1, block.size)
        else:
            self._live[block.address] = block
            self.stats.allocation += 1
            self.stats.allocated_bytes += block.size
            self.stats.requested_bytes += block.requested
            self.stats.grow_active(block.size)

    def _pool(self, size: int, stream: int) -> Pool:
        """`get_pool`."""
        private = self.private.serving(stream) if self.private.active else None
        if private is not None:
            return private.small if size <= SMALL_BYTES else private.large
        return self._small if size <= SMALL_BYTES else self._large

    def _finish_waiting(self) -> None:
        """`process_events`: all streams are done with what was freed."""
        for block in self._waiting.values():
            self._to_pool(block)
        self._waiting.clear()

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

    def _cut(self, block: Block, size: int) -> Block:
        """`alloc_found_block`: the first `size` bytes of a block, if the rest is worth one of its own; else all."""
        was_split = not block.whole
        if not self._splits(block, size):
            if was_split and block.pages is None:
                self.stats.change_split(-1, -block.size)
            return block
        rest = block
        block = split(block, size)
        if block.pages is None:
            self.stats.change_split(*((0, -size) if was_split else (1, rest.size)))
        return block

    def _splits(self, block: Block, size: int) -> bool:
        """`should_split`: whether the rest of the block is worth a block of its own."""
        rest = block.size - size
        if block.pool.small or self.settings.expandable_segments:
            return rest >= MIN_BLOCK_BYTES
        if rest <= SMALL_BYTES:
            return False
        limit = self.settings.max_split_bytes
        return limit is None or size < limit

    def _from_driver(self, pool: Pool, size: int, stream: int) -> Block:
        """A new block from the driver, after giving back cached ones if need be. Raises `OutOfMemoryError`."""
        if self._collects:
            threshold = int(self.settings.garbage_collection_threshold * (self._calls.allowed_bytes or 0))
            for idle in aged(self._large, self.reserved_bytes - threshold):
                self._calls.release(idle)
        block = self._calls.ask(pool, size, stream)
        if block is None and self._release_oversize(pool, size, stream):
            block = self._calls.ask(pool, size, stream)
        if block is None and not self.private.defers(stream):
            self.empty_cache()
            self.stats.num_alloc_retries += 1
            block = self._calls.ask(pool, size, stream)
        if block is None:
            raise self._out_of_memory(size)
        return block

    def _out_of_memory(self, size: int) -> OutOfMemoryError:
        self.stats.num_ooms += 1
        free = self.driver.free_bytes
        private = sum(
            block.size
            for own in self.private.pools.values()
            for pool in (own.small, own.large)
            for block in free_blocks(pool)
        )
        return OutOfMemoryError(
            tried_bytes=segment_bytes(size, self.settings),
            capacity_bytes=self.device_bytes,
            free_bytes=self.device_bytes - self.driver.used_bytes if free is None else free,
            allocated=self.allocated_bytes + private,
            reserved=self.reserved_bytes,
            allowed_bytes=self._calls.allowed_bytes,
            private_bytes=private,
        )

    def _release_oversize(self, pool: Pool, size: int, stream: int) -> bool:
        limit = self.settings.max_split_bytes
        if limit is None or self.settings.expandable_segments:
            return False
        found = oversize(pool, stream=stream, size=size, limit=limit)
        released = sum(block.size for block in found)
        for block in found:
            self._calls.release(block)
        return released >= max(size, limit)
