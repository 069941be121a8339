"""Pools of their own: what a CUDA graph, or `torch.cuda.use_mem_pool`, allocates is kept apart from all else.

    begin(7, stream=3)   requests of stream 3 come from pool 7     a capture: other streams go on as before
    end(7)               the pool stays, for the graph's replays; freed blocks return to it
    release(7)           the last graph is gone: emptying the cache may give its segments back
    hold(7)              a `torch.cuda.MemPool` is a user too, from when it is made until it is released

>>> pools = PrivatePools()
>>> pools.begin(7, stream=3)
>>> pools.serving(stream=3) is pools.pools[7], pools.serving(stream=0)
(True, None)
>>> pools.end(7); pools.serving(stream=3), pools.idle()
(None, [])
>>> pools.release(7); len(pools.idle())
1
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dnnmem.estimator.allocator_versions import AllocatorRules
from dnnmem.estimator.blocks import Pool
from dnnmem.estimator.errors import InternalError


@dataclass(slots=True, eq=False)
class PrivatePool:
    """The blocks of one pool, and who still needs it."""

    small: Pool
    """Blocks up to 1 MiB."""
    large: Pool
    """All others."""
    users: int = 0
    """Graphs that were captured into it, and contexts that allocate from it."""


@dataclass(slots=True, eq=False)
class PrivatePools:
    """All private pools of an allocator."""

    rules: AllocatorRules = field(default_factory=AllocatorRules)
    """Those of the release."""
    pools: dict[int, PrivatePool] = field(default_factory=dict)
    """By the caller's number."""
    active: list[tuple[int, int | None]] = field(default_factory=list)
    """Pools that serve requests now, with the stream they serve; None is every stream."""
    captures: set[int] = field(default_factory=set)
    """Those of them that a CUDA graph is captured into: a request for it asks no event and empties no cache."""

    def begin(self, pool: int, stream: int | None = None, *, captures: bool = False) -> None:
        """Serve requests, of one stream or of all, from `pool`. Raises `InternalError` if it does already."""
        if any(number == pool for number, _ in self.active):
            raise InternalError(f"private pool {pool} serves requests already")
        self.hold(pool)
        self.active.append((pool, stream))
        if captures:
            self.captures.add(pool)

    def hold(self, pool: int) -> None:
        """One more user, for which nothing is served yet."""
        self.at(pool).users += 1

    def at(self, pool: int) -> PrivatePool:
        """That pool, made if there is none."""
        if pool not in self.pools:
            self.pools[pool] = PrivatePool(Pool(small=True, owner=pool), Pool(small=False, owner=pool))
        return self.pools[pool]

    def end(self, pool: int) -> None:
        """No longer. Raises `InternalError` if it does not."""
        if all(number != pool for number, _ in self.active):
            raise InternalError(f"private pool {pool} serves no requests")
        self.active = [(number, stream) for number, stream in self.active if number != pool]
        self.captures.discard(pool)

    def release(self, pool: int) -> None:
        """One of its users is gone. Raises `InternalError` if there is none."""
        if pool not in self.pools or not self.pools[pool].users:
            raise InternalError(f"private pool {pool} has no users")
        self.pools[pool].users -= 1

    def serving(self, stream: int) -> PrivatePool | None:
        """The pool that a request of `stream` goes to; None for the common one."""
        for number, only in self.active:
            if only is None or only == stream:
                return self.pools[number]
        return None

    def defers(self, stream: int) -> bool:
        """Whether a request of `stream` asks no event and empties no cache, since a graph might be captured."""
        if self.rules.pools_defer:
            return bool(self.active)
        return any(number in self.captures and only in (None, stream) for number, only in self.active)

    def idle(self) -> list[PrivatePool]:
        """Pools without users: their segments may go back to the driver."""
        return [pool for _, pool in sorted(self.pools.items()) if not pool.users]
