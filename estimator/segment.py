"""What the caching allocator holds and what it asked of the driver, in the words of PyTorch's memory snapshot.

    Segment        [ BlockInfo live | BlockInfo free | BlockInfo live ]
    SegmentEvent   segment_alloc 20 MiB, segment_free 20 MiB, ...

>>> from dnnmem.estimator.blocks import Pool
>>> segment_at(Block(0, 2048, 0, Pool(small=False))).blocks
(BlockInfo(address=0, nbytes=2048, requested_bytes=0, allocated=False),)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dnnmem.estimator.blocks import Block


class SegmentEvent(NamedTuple):
    """One call of the driver."""

    action: str
    """`segment_alloc`, `segment_free`, `segment_map` or `segment_unmap`, as in PyTorch's memory history."""
    address: int
    """First byte."""
    nbytes: int
    """Bytes."""
    stream: int
    """Stream it serves."""


class BlockInfo(NamedTuple):
    """A block of a segment."""

    address: int
    """First byte."""
    nbytes: int
    """Bytes."""
    requested_bytes: int
    """Bytes the program asked for; 0 in a free block."""
    allocated: bool
    """True if the program holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Memory obtained from the driver, as `torch.cuda.memory_snapshot` lists it."""

    address: int
    """First byte."""
    nbytes: int
    """Bytes."""
    stream: int
    """Stream it serves."""
    small: bool
    """True in the pool of blocks up to 1 MiB."""
    expandable: bool
    """True for a stretch of mapped pages of an expandable segment."""
    blocks: tuple[BlockInfo, ...]
    """Its blocks by address; they tile it."""
    pool: int = 0
    """Number of the private pool it belongs to, 0 for the common one."""


def segment_at(head: Block) -> Segment:
    """The segment, or stretch of mapped pages, that begins with `head`."""
    blocks = []
    at: Block | None = head
    while at is not None and at.mapped:
        blocks.append(BlockInfo(at.address, at.size, at.requested, at.allocated))
        at = at.after
    return Segment(
        address=head.address,
        nbytes=sum(block.nbytes for block in blocks),
        stream=head.stream,
        small=head.pool.small,
        expandable=head.pages is not None,
        blocks=tuple(blocks),
        pool=head.pool.owner,
    )
