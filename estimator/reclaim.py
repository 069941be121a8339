"""Which cached blocks go back to the driver, short of emptying the whole cache.

    oversize    under `max_split_size_mb`: blocks too large to be split, until a request could be served
    aged        under `garbage_collection_threshold`: segments that have long been idle, until enough are gone

>>> from dnnmem.estimator.blocks import put
>>> pool = Pool(small=False)
>>> for size in (40, 60): put(Block(address=size, size=size, stream=0, pool=pool))
>>> [block.size for block in oversize(pool, stream=0, size=50, limit=30)], [
...     block.size for block in oversize(pool, stream=0, size=150, limit=30)]
([60], [60, 40])
"""

from __future__ import annotations

from dnnmem.estimator.blocks import Block, Pool, best_fit, free_blocks


def oversize(pool: Pool, *, stream: int, size: int, limit: int) -> list[Block]:
    """`release_available_cached_blocks`: the blocks of `limit` bytes or more that make room for `size`, in order.

    The smallest one that is enough, or the largest ones until they are; all there are if that is too little, and then
    the sum of their sizes says so.
    """
    wanted = max(size, limit)
    block = best_fit(pool, stream, wanted)
    if block is not None:
        return [block]
    found: list[Block] = []
    for _, _, candidate in reversed(pool.free.get(stream, [])):
        if sum(block.size for block in found) >= wanted or candidate.size < limit:
            break
        found.append(candidate)
    return found


def aged(pool: Pool, target_bytes: int) -> list[Block]:
    """`garbage_collect_cached_blocks`: idle segments, the older half of those left each time, until `target_bytes`."""
    idle = [block for block in free_blocks(pool) if block.whole]
    age = sum(pool.searches - block.born for block in idle)
    found: list[Block] = []
    reclaimed = 0
    while target_bytes > reclaimed and idle:
        mean = age / len(idle)
        old = [block for block in idle if pool.searches - block.born >= mean]
        age -= sum(pool.searches - block.born for block in old)
        reclaimed += sum(block.size for block in old)
        found += old
        idle = [block for block in idle if block not in old]
    return found
