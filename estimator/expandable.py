"""Expandable segments: one address range a pool and stream, into which memory is mapped page by page as it grows.

Under `expandable_segments:True` the allocator asks the driver for pages (2 MiB in the small pool, 20 MiB in the large
one) instead of segments, so that freed blocks of different sizes merge. This follows `find_expandable_block`,
`map_block` and `unmap_block` of PyTorch's `CUDACachingAllocator.cpp`.

    range   [ live | free | live, free |  no memory (unmapped)  ...                                        ]
              page 0      page 1          page 2                     1 1/8 of the GPU's memory in all

>>> driver, pool = Driver(), Pool(small=False)
>>> calls = []
>>> block = grow(driver, pool, stream=0, size=25 * 2**20, page_bytes=20 * 2**20, device_bytes=2**30,
...              on_map=lambda address, nbytes: calls.append(nbytes >> 20))
>>> block.size >> 20, calls, block.after.mapped
(40, [40], False)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from dnnmem.estimator.blocks import (
    Block,
    Pages,
    Pool,
    insert_after,
    merge,
    put,
    put_unmapped,
    take,
    take_unmapped,
)
from dnnmem.estimator.driver_memory import Driver


def grow(
    driver: Driver,
    pool: Pool,
    *,
    stream: int,
    size: int,
    page_bytes: int,
    device_bytes: int,
    on_map: Callable[[int, int], None],
) -> Block | None:
    """Map pages until a free block has `size` bytes; `on_map(address, bytes)` hears of each mapping.

    Returns: the block, out of its pool, or None if the driver has no more memory; what was mapped until then stays.
    """
    block = _lowest_room(pool, stream, size) or _new_range(driver, pool, stream, page_bytes, device_bytes)
    while not block.mapped or block.size < size:
        target = block if not block.mapped else block.after
        if target is None:
            return None
        address, missing = target.address, size if target is block else size - block.size
        mapped = _map(driver, target, min(missing, target.size))
        if not mapped:
            return None
        on_map(address, mapped)
        block = target
    take(block)
    return block


def range_bytes(device_bytes: int, page_bytes: int) -> int:
    """Addresses that an expandable segment reserves: those of 1 1/8 of the GPU's memory, in whole pages."""
    return -(-(device_bytes + device_bytes // 8) // page_bytes) * page_bytes


def unmap(driver: Driver, block: Block) -> tuple[int, int]:
    """Give back the whole pages inside a free block; returns their address and bytes (0 = there are none)."""
    pages = block.pages
    if pages is None:
        return block.address, 0
    first = -(-(block.address - pages.address) // pages.page_bytes) * pages.page_bytes + pages.address
    last = (block.address + block.size - pages.address) // pages.page_bytes * pages.page_bytes + pages.address
    if first >= last:
        return block.address, 0
    take(block)
    end = block.address + block.size
    if first > block.address:
        head = Block(block.address, first - block.address, block.stream, block.pool, block.before, block, pages)
        if head.before is not None:
            head.before.after = head
        block.before = head
        put(head)
    if end > last:
        tail = Block(last, end - last, block.stream, block.pool, pages=pages)
        insert_after(block, tail)
        put(tail)
    block.address, block.size, block.mapped = first, last - first, False
    merge(block, block.before)
    merge(block, block.after)
    put_unmapped(block)
    driver.release(last - first)
    if block.whole:
        take_unmapped(block)
    return first, last - first


def expanded_fit(pool: Pool, start: Block) -> Block:
    """The best fit when a block next to unmapped address space counts as large as it can grow (`get_free_block`)."""
    entries = pool.free[start.stream]
    block = start
    for index in range(bisect_left(entries, (start.size, start.address)) + 1, len(entries)):
        following = entries[index][2]
        if block.pages is None or _room(following) >= _room(block):
            break
        block = following
    return block


def _room(block: Block) -> int:
    return block.size + (block.after.size if block.after is not None and not block.after.mapped else 0)


def _lowest_room(pool: Pool, stream: int, size: int) -> Block | None:
    """First of a run of free and unmapped blocks with `size` bytes of address space, the lowest address of all."""
    for _, block in pool.unmapped.get(stream, ()):
        start = block.before if block.before is not None and not block.before.allocated else block
        room = 0
        at: Block | None = start
        while room < size and at is not None and not at.allocated:
            room += at.size
            at = at.after
        if room >= size:
            return start
    return None


def _new_range(driver: Driver, pool: Pool, stream: int, page_bytes: int, device_bytes: int) -> Block:
    nbytes = range_bytes(device_bytes, page_bytes)
    pages = Pages(driver.address(nbytes), nbytes, page_bytes)
    block = Block(pages.address, nbytes, stream, pool, pages=pages, mapped=False)
    put_unmapped(block)
    return block


def _map(driver: Driver, block: Block, size: int) -> int:
    """Put memory behind the first `size` bytes of an unmapped block, in whole pages; returns the bytes, 0 = none."""
    pages = block.pages
    if pages is None:
        return 0
    mapped = -(-size // pages.page_bytes) * pages.page_bytes
    if not driver.charge(mapped):
        return 0
    take_unmapped(block)
    block.mapped = True
    if mapped < block.size:
        rest = Block(block.address + mapped, block.size - mapped, block.stream, block.pool, pages=pages, mapped=False)
        insert_after(block, rest)
        put_unmapped(rest)
        block.size = mapped
    merge(block, block.before)
    merge(block, block.after)
    put(block)
    return mapped
