"""The caching allocator's bookkeeping: blocks that tile a segment, and the pools in which free ones wait.

    segment   [ block 512 B, live | block 1 MiB, free | block 4 MiB, live | rest, free ]     before <- block -> after

A free block lies in its pool, ordered by (stream, size, address) as `BlockComparatorSize` of PyTorch's
`CUDACachingAllocator.cpp` orders it: the first one that is large enough is the best fit. Free neighbours never touch:
freeing merges them. Address space of an expandable segment that holds no memory is a block too, not mapped.

>>> pool = Pool(small=True)
>>> block = Block(address=0, size=4096, stream=0, pool=pool)
>>> left, rest = split(block, 512), block
>>> (left.address, left.size), (rest.address, rest.size), best_fit(pool, 0, 1024) is rest
((0, 512), (512, 3584), True)
>>> merge(left, rest), left.size, best_fit(pool, 0, 1) is None
(3584, 4096, True)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Pages:
    """The address range of one expandable segment."""

    address: int
    """First byte."""
    size: int
    """Bytes of address space, a multiple of the page."""
    page_bytes: int
    """Memory is mapped in pieces of this size."""


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment, live or free."""

    address: int
    """First byte."""
    size: int
    """Bytes."""
    stream: int
    """Stream whose requests it serves."""
    pool: Pool
    """Where it waits when free."""
    before: Block | None = None
    """Neighbour at lower addresses in the same segment."""
    after: Block | None = None
    """Neighbour at higher addresses."""
    pages: Pages | None = None
    """The expandable segment it belongs to, None for a plain one."""
    mapped: bool = True
    """False for address space of an expandable segment that holds no memory."""
    allocated: bool = False
    """True while the program holds it, or another stream still uses it."""
    requested: int = 0
    """Bytes that the program asked for."""
    born: int = 0
    """`Pool.searches` when it became free; its age decides what garbage collection takes."""

    @property
    def whole(self) -> bool:
        """True if it is a segment of its own."""
        return self.before is None and self.after is None


Entry = tuple[int, int, Block]


@dataclass(slots=True, eq=False)
class Pool:
    """Free blocks of one size class."""

    small: bool
    """Pool of blocks up to 1 MiB."""
    owner: int = 0
    """Number of the private pool it belongs to, 0 for the common one."""
    free: dict[int, list[Entry]] = field(default_factory=dict)
    """By stream: (size, address, block), sorted."""
    unmapped: dict[int, list[tuple[int, Block]]] = field(default_factory=dict)
    """By stream: (address, block) of address space without memory, sorted."""
    searches: int = 0
    """Requests so far; counted only under garbage collection."""


def put(block: Block) -> None:
    """Add a free block to its pool."""
    block.born = block.pool.searches
    insort(block.pool.free.setdefault(block.stream, []), (block.size, block.address, block))


def take(block: Block) -> None:
    """Remove a free block from its pool."""
    entries = block.pool.free[block.stream]
    del entries[bisect_left(entries, (block.size, block.address))]


def put_unmapped(block: Block) -> None:
    """Add address space without memory to its pool."""
    insort(block.pool.unmapped.setdefault(block.stream, []), (block.address, block))


def take_unmapped(block: Block) -> None:
    """Remove address space without memory from its pool."""
    entries = block.pool.unmapped[block.stream]
    del entries[bisect_left(entries, (block.address,))]


def best_fit(pool: Pool, stream: int, size: int) -> Block | None:
    """The smallest free block of `stream` with at least `size` bytes, the lowest address among equals; it stays."""
    entries = pool.free.get(stream)
    if not entries:
        return None
    index = bisect_left(entries, (size,))
    return entries[index][2] if index < len(entries) else None


def take_fit(pool: Pool, stream: int, size: int) -> Block | None:
    """The same, out of its pool."""
    entries = pool.free.get(stream)
    if not entries:
        return None
    index = bisect_left(entries, (size,))
    return entries.pop(index)[2] if index < len(entries) else None


def free_blocks(pool: Pool) -> Iterator[Block]:
    """All free blocks by stream, size and address; the pool may change meanwhile."""
    for stream in sorted(pool.free):
        for _, _, block in list(pool.free[stream]):
            yield block


def insert_after(block: Block, new: Block) -> None:
    """Link `new` between `block` and its neighbour."""
    new.before, new.after = block, block.after
    if block.after is not None:
        block.after.before = new
    block.after = new


def split(block: Block, size: int) -> Block:
    """Cut the first `size` bytes off a block that is in no pool; the rest goes to the pool, the cut is returned."""
    cut = Block(block.address, size, block.stream, block.pool, block.before, block, block.pages)
    if cut.before is not None:
        cut.before.after = cut
    block.before = cut
    block.address += size
    block.size -= size
    put(block)
    return cut


def merge(block: Block, neighbour: Block | None) -> int:
    """Swallow a free neighbour, which leaves its pool: its bytes; 0 if it is held, absent, or not mapped alike."""
    if neighbour is None or neighbour.allocated or neighbour.mapped is not block.mapped:
        return 0
    (take if neighbour.mapped else take_unmapped)(neighbour)
    if block.before is neighbour:
        block.address = neighbour.address
        block.before = neighbour.before
        if block.before is not None:
            block.before.after = block
    else:
        block.after = neighbour.after
        if block.after is not None:
            block.after.before = block
    block.size += neighbour.size
    return neighbour.size
