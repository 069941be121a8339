from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.allocator_settings import AllocatorSettings
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import TraceError
from dnnmem.estimator.out_of_memory import OutOfMemoryError
from dnnmem.estimator.replay import replay, replay_on, replay_trace
from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace
from tests.strategies import step_trace

MIB = 2**20


def _trace(*, setup: bool) -> Trace:
    """A weight of 30 MiB; a step makes 50 MiB and a temporary of 4, frees them, and makes the weight anew."""
    weight = Storage(id=0, nbytes=30 * MIB, kind=Kind.PARAM)
    made = Storage(id=1, nbytes=50 * MIB, kind=Kind.TEMP)
    make = Op(name="make", writes=(1,), events=(Event(50 * MIB, 0, 1), Event(4 * MIB, 0, -1), Event(-4 * MIB, 0, -1)))
    anew = Op(name="anew", writes=(0,), events=(Event(-50 * MIB, 0, 1), Event(-30 * MIB, 0, 0), Event(30 * MIB, 0, 0)))
    before = (Event(100 * MIB, 0, 9), Event(30 * MIB, 0, 0), Event(-100 * MIB, 0, 9)) if setup else ()
    return Trace(ops=(make, anew), storages={0: weight, 1: made}, setup=before, pinned=frozenset({0}))


def test_the_peaks_are_those_of_the_last_step_and_the_cache_is_that_of_all():
    # GIVEN a set-up that had 130 MiB alive  WHEN set-up and two steps are played
    result = replay_trace(_trace(setup=True))
    # THEN the step's own peak is 84 MiB, in what the set-up left: 50 and 4 MiB are cut out of its free 100
    assert result.peak_requested_bytes == result.peak_allocated_bytes == 84 * MIB
    assert result.peak_reserved_bytes == result.reserved_at_peak_allocated_bytes == 130 * MIB
    assert result.fragmentation_bytes == 46 * MIB
    assert (result.allocated_bytes, result.segment_count, result.retries) == (30 * MIB, 2, 0)


def test_pinned_storages_without_a_set_up_are_allocated_first():
    result = replay_trace(_trace(setup=False), steps=1)
    assert result.peak_allocated_bytes == 84 * MIB
    assert result.peak_reserved_bytes == (30 + 50 + 20) * MIB


def test_requested_bytes_are_the_traces_own_peak():
    trace = step_trace(8)
    result = replay_trace(trace)
    assert result.peak_requested_bytes == trace.peak_bytes()
    assert result.peak_allocated_bytes % 512 == 0
    assert result.allocated_bytes == 512 * len(trace.pinned)


def test_more_steps_change_nothing_once_the_cache_has_settled():
    trace = _trace(setup=True)
    assert replay_trace(trace, steps=2) == replay_trace(trace, steps=7)


def test_settings_and_capacity_reach_the_allocator():
    # GIVEN 100 MiB  WHEN the step needs 84 in three segments of 30, 50 and 20 MiB  THEN it just fits
    tight = replay_trace(_trace(setup=False), capacity_bytes=100 * MIB)
    assert tight.out_of_memory is None
    # AND in pages of 20 MiB it fits in 100 MiB too, whatever the order
    paged = replay_trace(_trace(setup=False), AllocatorSettings(expandable_segments=True), capacity_bytes=100 * MIB)
    assert (paged.out_of_memory, paged.peak_reserved_bytes) == (None, 100 * MIB)


def test_running_out_of_memory_is_a_result():
    result = replay([Event(60 * MIB, 0, 0), Event(60 * MIB, 0, 1), Event(1, 0, 2)], capacity_bytes=100 * MIB)
    assert isinstance(result.out_of_memory, OutOfMemoryError)
    assert result.out_of_memory.tried_bytes == 60 * MIB
    assert (result.peak_allocated_bytes, result.retries) == (60 * MIB, 1)
    in_trace = replay_trace(_trace(setup=False), capacity_bytes=40 * MIB)
    assert in_trace.out_of_memory is not None
    assert in_trace.out_of_memory.tried_bytes == 50 * MIB


def test_events_of_no_bytes_are_skipped():
    assert replay([Event(0, 0, 0), Event(0, 0, 0), Event(512, 0, 1)]).allocated_bytes == 512


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([Event(-8, 0, 3)], "event 0 frees storage 3, which is not alive"),
        ([Event(8, 0, 3), Event(8, 0, 3)], "event 1 allocates storage 3, which is already alive"),
    ],
)
def test_an_impossible_list_is_refused(events, message):
    with pytest.raises(TraceError, match=message):
        replay(events)


def test_near_the_end_of_a_gpu_cached_segments_are_given_back_and_a_step_too_large_keeps_its_size():
    # GIVEN a step that frees two blocks of 5 GiB one after the other, both cached  WHEN the GPU offers 8 GiB, or 4
    first, second = (Storage(id=i, nbytes=(5 + i) * 2**30, kind=Kind.TEMP) for i in (0, 1))
    ops = [
        Op(name="op", writes=(s.id,), events=(Event(s.nbytes, 0, s.id), Event(-s.nbytes, 0, s.id)))
        for s in (first, second)
    ]
    trace = Trace(ops=tuple(ops), storages={0: first, 1: second})
    device = find_device("a100-sxm-80gb")
    held = [
        replay_on(trace, replace(device, usable_bytes=gib * 2**30, context_bytes=None)).peak_reserved_bytes
        for gib in (80, 8, 4)
    ]
    assert [round(nbytes / 2**30) for nbytes in held] == [11, 6, 11]
