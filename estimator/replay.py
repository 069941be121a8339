"""What a list of allocator events makes a process reserve: the events of a trace, played on the simulated allocator.

    setup, step, step, ...      each event allocates or frees; addresses, segments and so reserved bytes follow

The peaks are those of the last step, the one that goes on for the rest of the training; it starts with the cache that
the first ones leave behind. `fragmentation_bytes` is what is reserved and in no block at the peak.

>>> events = [Event(3 * 2**20, 0, 0), Event(600, 0, 1), Event(-600, 0, 1), Event(-3 * 2**20, 0, 0)]
>>> result = replay(events)
>>> result.peak_requested_bytes, result.peak_allocated_bytes, result.peak_reserved_bytes >> 20, result.segment_count
(3146328, 3146752, 22, 2)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.allocator_settings import AllocatorSettings
from dnnmem.estimator.allocator_versions import AllocatorRules, rules_of
from dnnmem.estimator.errors import TraceError
from dnnmem.estimator.first_step import first_step, is_of_first_step, remade
from dnnmem.estimator.out_of_memory import OutOfMemoryError
from dnnmem.estimator.timeline import Timeline
from dnnmem.estimator.trace import Event, Kind, Trace

if TYPE_CHECKING:
    from dnnmem.estimator.device import Device


_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What the allocator held. Peaks are those since the last reset: the whole list, or the last step of a trace."""

    peak_requested_bytes: int
    """Largest sum of the program's own sizes."""
    peak_allocated_bytes: int
    """Largest sum of live blocks (`torch.cuda.max_memory_allocated`)."""
    peak_reserved_bytes: int
    """Largest sum of segments (`torch.cuda.max_memory_reserved`)."""
    reserved_at_peak_allocated_bytes: int
    """Reserved when `peak_allocated_bytes` was first reached."""
    allocated_bytes: int
    """Live blocks at the end."""
    reserved_bytes: int
    """Segments at the end."""
    segment_count: int
    """Segments at the end."""
    retries: int
    """How often the driver refused and the cache was emptied: each one stalls the GPU."""
    out_of_memory: OutOfMemoryError | None = None
    """What ended the replay early, None if all events were served."""

    @property
    def fragmentation_bytes(self) -> int:
        """Reserved and in no block, when most is allocated."""
        return self.reserved_at_peak_allocated_bytes - self.peak_allocated_bytes


def replay(
    events: Iterable[Event], settings: AllocatorSettings | None = None, *, capacity_bytes: int | None = None
) -> ReplayResult:
    """Play `events` from an empty allocator. Raises `TraceError` if one frees what is not alive or allocates twice."""
    allocator = CachingAllocator(settings, capacity_bytes)
    try:
        _Player(allocator=allocator).play(events)
    except OutOfMemoryError as error:
        return _result(allocator, error)
    return _result(allocator)


def replay_trace(
    trace: Trace,
    settings: AllocatorSettings | None = None,
    steps: int | None = None,
    *,
    capacity_bytes: int | None = None,
) -> ReplayResult:
    """Play the set-up of `trace`, then its step `steps` times; the peaks are those of the last step.

    Without a number it is played twice, and once more where that still made the allocator reserve more.

    Pinned storages that the set-up does not allocate (a trace that a pass has made may have none) are allocated after
    it, in their order in `storages`; `FIRST_STEP` within the first step. Raises `TraceError` as `replay` does.
    """
    allocator = CachingAllocator(settings, capacity_bytes, rules=_rules(trace))
    step = [event for _, event in trace.events()]
    try:
        player = _started(allocator, trace)
        for _ in _rounds(allocator, player.steps, steps):
            allocator.reset_peak()
            player.play(step)
    except OutOfMemoryError as error:
        return _result(allocator, error)
    return _result(allocator)


def free_bytes(device: Device) -> int:
    """What a process's allocator can reserve on an empty GPU."""
    return device.usable_bytes - (device.context_bytes or 0)


def replay_on(trace: Trace, device: Device, settings: AllocatorSettings | None = None) -> ReplayResult:
    """Play the step on a GPU: near the end of its memory the allocator gives cached segments back, before it fails.

    Where the step does not fit even so, what it would hold on a larger GPU. Raises `TraceError` as `replay` does.
    """
    capacity = free_bytes(device)
    if settings is not None:
        held = replay_trace(trace, settings, capacity_bytes=capacity)
        return replay_trace(trace, settings) if held.out_of_memory else held
    free = replay_trace(trace)
    if free.peak_reserved_bytes <= capacity or free.peak_allocated_bytes > capacity:  # nothing is given back, or enough
        return free
    held = replay_trace(trace, capacity_bytes=capacity)
    return free if held.out_of_memory else held


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """What the allocator held over one step; arrays as those of `timeline(trace)`: entry 0 is the start."""

    allocated: npt.NDArray[np.int64]
    """Live blocks, bytes."""
    reserved: npt.NDArray[np.int64]
    """Segments, bytes."""

    @property
    def fragmentation_bytes(self) -> int:
        """Reserved and in no block, when most is reserved."""
        at = int(self.reserved.argmax())
        return int(self.reserved[at] - self.allocated[at])


def replay_curve(trace: Trace, settings: AllocatorSettings | None = None, steps: int | None = None) -> Curve:
    """What the allocator holds after each event of the last step that `replay_trace` plays; raises as it does."""
    allocator = CachingAllocator(settings, rules=_rules(trace))
    player = _started(allocator, trace)
    step = [event for _, event in trace.events()]
    for _ in _rounds(allocator, player.steps, steps):
        stats = allocator.stats
        allocated, reserved = [stats.allocated_bytes], [stats.reserved_bytes]
        for event in step:
            player.play((event,))
            allocated.append(stats.allocated_bytes)
            reserved.append(stats.reserved_bytes)
    return Curve(allocated=np.array(allocated, np.int64), reserved=np.array(reserved, np.int64))


def _rounds(allocator: CachingAllocator, played: int, steps: int | None) -> Iterator[int]:
    """Counts the steps to play where some were `played`: `steps` in all, or until nothing grows any more."""
    before = allocator.stats.reserved_bytes
    for n in range(max(1, (steps or _STEPS) - played)):
        before = allocator.stats.reserved_bytes
        yield n
    if steps is None and allocator.stats.reserved_bytes > before:
        yield _STEPS


def with_reserved(trace: Trace, curve: Timeline) -> Timeline:
    """`curve`, which is that of `trace`, with what a caching allocator of default settings reserves."""
    return replace(curve, reserved=replay_curve(trace).reserved)


def _rules(trace: Trace) -> AllocatorRules:
    """Those of the release that the trace was made with."""
    return rules_of(trace.origin.versions.get("torch"))


@dataclass(slots=True, kw_only=True)
class _Player:
    """Serves events."""

    allocator: CachingAllocator
    late: frozenset[int] = frozenset()
    """Storages whose memory serves again some time after their free."""
    addresses: dict[int, int] = field(default_factory=dict)
    """Of the live storages, by id."""
    waiting: dict[int, deque[int]] = field(default_factory=lambda: defaultdict(deque))
    """Addresses that do not serve again yet, by storage, oldest first."""
    steps: int = 0
    """Steps that have been played before the first one was asked for."""

    def play(self, events: Iterable[Event]) -> None:
        """Serve `events`."""
        malloc, addresses = self.allocator.malloc, self.addresses
        for index, (nbytes, stream, storage) in enumerate(events):
            if nbytes > 0:
                if storage in addresses:
                    raise TraceError(f"event {index} allocates storage {storage}, which is already alive")
                addresses[storage] = malloc(nbytes, stream)
            elif nbytes < 0:
                if storage not in addresses:
                    raise TraceError(f"event {index} frees storage {storage}, which is not alive")
                self._free(storage, addresses.pop(storage))
            elif self.waiting[storage]:
                self.allocator.complete_free(self.waiting[storage].popleft())

    def _free(self, storage: int, address: int) -> None:
        if storage in self.late:
            self.allocator.request_free(address)
            self.waiting[storage].append(address)
        else:
            self.allocator.free(address)


def _started(allocator: CachingAllocator, trace: Trace) -> _Player:
    """With what lives before the first step, or after it, if its update has to make the optimizer's states."""
    late = frozenset(e.storage for e in chain(trace.setup, *(op.events for op in trace.ops)) if not e.nbytes)
    player = _Player(allocator=allocator, late=late)
    player.play(trace.setup)
    unmade = trace.pinned - player.addresses.keys()
    missing = [
        s for i, s in trace.storages.items() if i in unmade and s.nbytes
    ]  # copies of blocks stand in their places
    absent = remade(trace.ops, missing)
    first = [s for s in missing if is_of_first_step(s) or s.id in absent]
    player.play(Event(s.nbytes, 0, s.id) for s in missing if s not in first)
    if first:
        player.play(first_step(trace, [s for s in first if s.kind is not Kind.COMM]))
        buckets = [s for s in first if s.kind is Kind.COMM]
        player.steps = 0 if buckets else 1  # the second step is another one, and leaves other segments
        left = [s for i, s in trace.storages.items() if i in player.addresses and i not in trace.pinned]
        player.play([Event(-s.nbytes, 0, s.id) for s in left])
        player.play(Event(s.nbytes, 0, s.id) for s in buckets)
    return player


def _result(allocator: CachingAllocator, error: OutOfMemoryError | None = None) -> ReplayResult:
    stats = allocator.stats
    return ReplayResult(
        peak_requested_bytes=stats.peak_requested_bytes,
        peak_allocated_bytes=stats.peak_allocated_bytes,
        peak_reserved_bytes=stats.peak_reserved_bytes,
        reserved_at_peak_allocated_bytes=stats.reserved_at_peak_allocated_bytes,
        allocated_bytes=allocator.allocated_bytes,
        reserved_bytes=allocator.reserved_bytes,
        segment_count=len(allocator.segments()),
        retries=stats.num_alloc_retries,
        out_of_memory=error,
    )
