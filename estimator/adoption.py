"""How the allocator continues from segments that another one has left: their blocks, linked and in their pools.

    plain segment              [ live | free | live ]                         its blocks are a chain of their own
    stretches of mapped pages  [ live | free ] no memory [ live ] no memory   one range, as long as it can grow

Stretches of one pool and stream are taken to lie in one range that begins with the first of them; an empty one, of 0
bytes, says so where nothing is mapped at the beginning.

>>> from dataclasses import replace
>>> low = Segment(address=0, nbytes=2048, stream=0, small=True, expandable=True,
...               blocks=(BlockInfo(0, 2048, 2000, allocated=True),))
>>> high = replace(low, address=8192, blocks=(BlockInfo(8192, 2048, 0, allocated=False),))
>>> [found] = ranges([low, high], AllocatorSettings(), device_bytes=2**21)
>>> [(b.address, b.size, b.mapped) for b in chain_blocks(found, Pool(small=True))]
[(0, 2048, True), (2048, 6144, False), (8192, 2048, True), (10240, 4184064, False)]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dnnmem.estimator.allocator_settings import SMALL_SEGMENT_BYTES, AllocatorSettings
from dnnmem.estimator.blocks import Block, Pages, Pool, insert_after
from dnnmem.estimator.expandable import range_bytes
from dnnmem.estimator.segment import BlockInfo, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A plain segment, or all stretches of mapped pages of one expandable segment."""

    segments: tuple[Segment, ...]
    """By address."""
    pages: Pages | None
    """The address range of an expandable segment; None for a plain one."""

    @property
    def expandable(self) -> bool:
        """Whether it grows."""
        return self.pages is not None

    @property
    def small(self) -> bool:
        """In the pool of blocks up to 1 MiB."""
        return self.segments[0].small

    @property
    def pool(self) -> int:
        """Number of its private pool, 0 for the common one."""
        return self.segments[0].pool

    @property
    def nbytes(self) -> int:
        """Memory behind it."""
        return sum(segment.nbytes for segment in self.segments)


def ranges(segments: Iterable[Segment], settings: AllocatorSettings, device_bytes: int) -> list[Range]:
    """What belongs together; `device_bytes` is the GPU's total memory, which decides how long a range is."""
    found = []
    growing: dict[tuple[int, int, bool], list[Segment]] = {}
    for segment in segments:
        if segment.expandable:
            growing.setdefault((segment.pool, segment.stream, segment.small), []).append(segment)
        else:
            found.append(Range(segments=(segment,), pages=None))
    for (_, _, small), parts in growing.items():
        page = SMALL_SEGMENT_BYTES if small else settings.large_segment_bytes
        parts.sort(key=lambda segment: segment.address)
        first, last = parts[0].address, parts[-1].address + parts[-1].nbytes
        size = range_bytes(max(device_bytes, last - first), page)
        found.append(Range(segments=tuple(parts), pages=Pages(first, size, page)))
    return found


def chain_blocks(range_: Range, pool: Pool) -> Iterator[Block]:
    """Its blocks by address, linked to each other, and what holds no memory between and behind them."""
    blocks: list[Block] = []
    stream = range_.segments[0].stream

    def add(address: int, size: int, *, mapped: bool, info: BlockInfo | None = None) -> None:
        block = Block(address, size, stream, pool, pages=range_.pages, mapped=mapped)
        if info is not None:
            block.allocated, block.requested = info.allocated, info.requested_bytes
        if blocks:
            insert_after(blocks[-1], block)
        blocks.append(block)

    at = range_.segments[0].address
    for segment in range_.segments:
        if segment.address > at:
            add(at, segment.address - at, mapped=False)
        for info in segment.blocks:
            add(info.address, info.nbytes, mapped=True, info=info)
        at = segment.address + segment.nbytes
    if range_.pages is not None and at < range_.pages.address + range_.pages.size:
        add(at, range_.pages.address + range_.pages.size - at, mapped=False)
    yield from blocks
