"""What the allocator held before the first call of a snapshot's history: the end, with the history undone.

    segments then  --history-->  segments at the end          both are lists of `Segment`, as the simulated allocator's

A history is complete if nothing was held then; else it begins where recording was switched on, or where the ring
buffer of its `max_entries` does. Blocks then are known by address and request; their sizes follow from the settings.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dnnmem.estimator.allocator_settings import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    AllocatorSettings,
    block_bytes,
    parse_settings,
)
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.segment import BlockInfo, Segment
from dnnmem.profilers.snapshot import Call, Frames, Snapshot

_CONF = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def settings_of(snapshot: Snapshot) -> AllocatorSettings:
    """The settings that the program ran under, as far as the file holds them: those of its environment.

    A memory fraction or a setting that the program made itself is in no file. Raises `UsageError` as `parse_settings`.
    """
    return parse_settings(next((text for name in _CONF if (text := snapshot.settings.get(name))), ""))


def held_before(snapshot: Snapshot) -> list[tuple[Call, Frames]]:
    """What the program held before the first call of the history, as calls that allocate it, with frames if known.

    Found by undoing the history from its end. What it cannot explain, since calls are missing, is left as it is.
    """
    streams = {s.address: s.stream for s in snapshot.segments}
    live: dict[int, tuple[int, int, Frames]] = {}
    for segment in snapshot.segments:
        for block in segment.blocks:
            if block.allocated:
                frames = snapshot.block_frames.get(block.address, ())
                live[block.address] = (block.requested_bytes, streams[segment.address], frames)
    for call in reversed(snapshot.history):
        if call.action == "alloc":
            live.pop(call.address, None)
        elif call.action in ("free_completed", "free") and call.address not in live:
            live[call.address] = (call.nbytes, call.stream, ())
    return [(Call("alloc", address, n, stream), frames) for address, (n, stream, frames) in sorted(live.items())]


def pools_of(snapshot: Snapshot) -> tuple[int, ...]:
    """The private pool of each call, 0 for the common one.

    Files before torch 2.14 do not say it; there it is the pool of the segment at the end that holds the address, and
    the common one where no segment does any more.
    """
    if snapshot.pools:
        return snapshot.pools
    if not any(segment.pool for segment in snapshot.segments):
        return (0,) * len(snapshot.history)
    starts = [segment.address for segment in snapshot.segments]

    def pool(address: int) -> int:
        at = bisect_right(starts, address) - 1
        segment = snapshot.segments[max(at, 0)]
        return segment.pool if segment.address <= address < segment.address + segment.nbytes else 0

    return tuple(pool(call.address) for call in snapshot.history)


@dataclass(slots=True)
class _Undone:
    """The allocator's state while the history is undone."""

    mapped: list[tuple[int, int]] = field(default_factory=list)
    """Mapped pages, as (first byte, end), sorted; what touches is one."""
    owners: dict[int, Segment] = field(default_factory=dict)
    """Plain segments by address, and stretches of pages by each address at which one began: whose they are."""
    plain: dict[int, int] = field(default_factory=dict)
    """Bytes of plain segments, by address."""
    live: dict[int, int] = field(default_factory=dict)
    """Requests, by address."""
    late: set[int] = field(default_factory=set)
    """Blocks that were freed and still in use."""


def starting_segments(snapshot: Snapshot, settings: AllocatorSettings | None = None) -> tuple[Segment, ...]:
    """What the allocator held before the first call of the history, under `settings` (None: those of the file).

    A block of the large pool is longer than its rounded request by up to 1 MiB where the rest was not worth splitting;
    no free block of that pool is so short, hence a gap of up to 1 MiB behind a live block belongs to it.

    Raises `UsageError` if the history disagrees with the segments: calls are missing.
    """
    settings = settings or settings_of(snapshot)
    undone = _undo(snapshot)
    tiler = _Tiler(settings=settings, live=undone.live, addresses=sorted(undone.live))
    plain = [tiler.tile(undone.owners[at], at, nbytes) for at, nbytes in undone.plain.items()]
    grown = [tiler.tile(_owner(undone.owners, low), low, high - low) for low, high in undone.mapped]
    return tuple(sorted([*plain, *grown, *_bases(undone)], key=lambda segment: (segment.address, segment.nbytes)))


def late_before(snapshot: Snapshot) -> tuple[int, ...]:
    """Addresses of the blocks that were freed before the first call of the history, and still in use then."""
    return tuple(sorted(_undo(snapshot).late))


def _undo(snapshot: Snapshot) -> _Undone:
    state, pools = _Undone(), pools_of(snapshot)
    for segment in snapshot.segments:
        state.owners[segment.address] = segment
        if segment.expandable:
            _add(state.mapped, segment.address, segment.address + segment.nbytes)
        else:
            state.plain[segment.address] = segment.nbytes
        state.live |= {b.address: b.requested_bytes for b in segment.blocks if b.allocated}
    for index in range(len(snapshot.history) - 1, -1, -1):
        call, pool = snapshot.history[index], pools[index]
        if call.action.startswith("segment"):
            _undo_segment(state, index, call, pool)
        else:
            _undo_block(state, index, call)
    return state


def _undo_block(state: _Undone, index: int, call: Call) -> None:
    if call.action == "alloc":
        if state.live.pop(call.address, None) is None:
            raise _gap(index, call, "is not there later on")
        state.late.discard(call.address)
    elif call.action == "free_completed":
        if call.address in state.live:
            raise _gap(index, call, "is there later on, though nothing allocated it again")
        state.live[call.address] = call.nbytes
        state.late.add(call.address)
    elif call.action == "free_requested":
        state.late.discard(call.address)


def _undo_segment(state: _Undone, index: int, call: Call, pool: int) -> None:
    if call.action == "segment_alloc":
        if state.plain.pop(call.address, None) is None:
            raise _gap(index, call, "is not there later on")
    elif call.action == "segment_map":
        if not _cut(state.mapped, call.address, call.address + call.nbytes):
            raise _gap(index, call, "is not there later on")
        state.owners.setdefault(call.address, _like(call, pool))
    elif call.action == "segment_unmap":
        _add(state.mapped, call.address, call.address + call.nbytes)
        state.owners.setdefault(call.address, _like(call, pool))
    elif call.action == "segment_free":
        if call.address in state.plain:
            raise _gap(index, call, "is there later on, though nothing allocated it again")
        state.plain[call.address] = call.nbytes
        state.owners[call.address] = _like(call, pool)


def _gap(index: int, call: Call, what: str) -> UsageError:
    return UsageError(
        f"the history has a gap: after call {index}, {call.action} of {call.address:#x}, the block {what}"
    )


def _like(call: Call, pool: int) -> Segment:
    """A segment of which only the history tells: one of 2 MiB is the small pool's."""
    small, grows = call.nbytes == SMALL_SEGMENT_BYTES, call.action in ("segment_map", "segment_unmap")
    return Segment(
        address=call.address,
        nbytes=call.nbytes,
        stream=call.stream,
        small=small,
        expandable=grows,
        blocks=(),
        pool=pool,
    )


def _add(mapped: list[tuple[int, int]], low: int, high: int) -> None:
    """Map [low, high); stretches that touch are one."""
    at = bisect_left(mapped, (low, high))
    if at < len(mapped) and mapped[at][0] == high:
        high = mapped.pop(at)[1]
    if at and mapped[at - 1][1] == low:
        low = mapped.pop(at - 1)[0]
        at -= 1
    mapped.insert(at, (low, high))


def _cut(mapped: list[tuple[int, int]], low: int, high: int) -> bool:
    """Unmap [low, high); False if it is not mapped."""
    at = bisect_right(mapped, (low, 2**64)) - 1
    if at < 0 or mapped[at][1] < high:
        return False
    first, end = mapped.pop(at)
    mapped[at:at] = [part for part in ((first, low), (high, end)) if part[0] < part[1]]
    return True


def _owner(owners: Mapping[int, Segment], address: int) -> Segment:
    """Whose the stretch at `address` is: as the one that began there, or the nearest one below it."""
    below = [at for at, segment in owners.items() if segment.expandable and at <= address]
    return owners[max(below)] if below else owners[min(at for at, segment in owners.items() if segment.expandable)]


def _bases(state: _Undone) -> list[Segment]:
    """Where ranges of expandable segments begin with no memory: pages below what was mapped are mapped later."""
    held = {_key(_owner(state.owners, low)): low for low, _ in reversed(state.mapped)}
    found: dict[tuple[int, int, bool], Segment] = {}
    for at, segment in state.owners.items():
        key = _key(segment)
        if segment.expandable and at < held.get(key, 0) and (key not in found or at < found[key].address):
            found[key] = Segment(
                address=at, nbytes=0, stream=segment.stream, small=segment.small, expandable=True, blocks=(),
                pool=segment.pool,
            )  # fmt: skip
    return list(found.values())


def _key(segment: Segment) -> tuple[int, int, bool]:
    return segment.pool, segment.stream, segment.small


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiler:
    """Fills segments with the blocks that live requests imply."""

    settings: AllocatorSettings
    live: Mapping[int, int]
    addresses: Sequence[int]
    """Those of all live blocks, sorted."""

    def tile(self, like: Segment, start: int, nbytes: int) -> Segment:
        """`nbytes` at `start`, of the pool and stream of `like`."""
        inside = self.addresses[bisect_left(self.addresses, start) : bisect_left(self.addresses, start + nbytes)]
        blocks: list[BlockInfo] = []
        at = start
        for index, address in enumerate(inside):
            end = inside[index + 1] if index + 1 < len(inside) else start + nbytes
            if address > at:
                blocks.append(BlockInfo(at, address - at, 0, allocated=False))
            size = self._size(like, address, end - address, nbytes)
            blocks.append(BlockInfo(address, size, self.live[address], allocated=True))
            at = address + size
        if at < start + nbytes:
            blocks.append(BlockInfo(at, start + nbytes - at, 0, allocated=False))
        return Segment(
            address=start, nbytes=nbytes, stream=like.stream, small=like.small, expandable=like.expandable,
            blocks=tuple(blocks), pool=like.pool,
        )  # fmt: skip

    def _size(self, like: Segment, address: int, room: int, nbytes: int) -> int:
        """The block of a request that has `room` bytes to the next one, in a segment of `nbytes`."""
        size = block_bytes(self.live[address], self.settings)
        limit = self.settings.max_split_bytes
        if like.small or like.expandable or self.settings.expandable_segments:
            whole = room - size < MIN_BLOCK_BYTES
        else:
            whole = room - size <= SMALL_BYTES or (limit is not None and nbytes >= limit)
        return room if whole else size
