from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.allocator_settings import AllocatorSettings, parse_settings
from dnnmem.estimator.driver_memory import Driver
from dnnmem.estimator.errors import InternalError
from dnnmem.estimator.out_of_memory import OutOfMemoryError

KIB, MIB = 2**10, 2**20

sizes = st.one_of(
    st.integers(1, MIB),
    st.integers(MIB, 12 * MIB),
    st.integers(12 * MIB, 200 * MIB),
    st.sampled_from([512, 513, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB]),
)
programs = st.lists(st.tuples(sizes, st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=60)
"""(bytes, stream, how many of the live blocks to free afterwards)"""
settings = st.sampled_from(
    [
        "",
        "expandable_segments:True",
        "max_split_size_mb:32",
        "roundup_power2_divisions:4",
        "per_process_memory_fraction:0.5,garbage_collection_threshold:0.4",
    ]
).map(parse_settings)


def _play(allocator: CachingAllocator, program: list[tuple[int, int, int]]) -> Iterator[dict[int, int]]:
    """Live blocks (address: bytes) after each request; a refused request is skipped."""
    live: dict[int, int] = {}
    for nbytes, stream, frees in program:
        with suppress(OutOfMemoryError):
            live[allocator.malloc(nbytes, stream)] = nbytes
        for address in sorted(live, key=lambda a: a % 97)[:frees]:
            allocator.free(address)
            del live[address]
        yield live


@given(programs, settings, st.sampled_from([None, 512 * MIB]))
def test_allocated_is_never_above_reserved_nor_reserved_above_capacity(program, setting, capacity):
    allocator = CachingAllocator(setting, capacity)
    for _ in _play(allocator, program):
        assert allocator.requested_bytes <= allocator.allocated_bytes <= allocator.reserved_bytes
        assert capacity is None or allocator.reserved_bytes <= capacity
        assert allocator.reserved_bytes == sum(segment.nbytes for segment in allocator.segments())
    assert allocator.stats.peak_allocated_bytes >= allocator.allocated_bytes
    assert allocator.stats.peak_reserved_bytes >= allocator.stats.peak_allocated_bytes


@given(programs, settings, st.sampled_from([None, 512 * MIB]))
def test_live_blocks_never_overlap_and_blocks_tile_their_segment(program, setting, capacity):
    allocator = CachingAllocator(setting, capacity)
    for live in _play(allocator, program):
        ordered = sorted(live.items())
        assert all(a + n <= b for (a, n), (b, _) in pairwise(ordered))
        blocks = [block for segment in allocator.segments() for block in segment.blocks]
        assert {b.address: b.requested_bytes for b in blocks if b.allocated} == live
        for segment in allocator.segments():
            at = segment.address
            for block in segment.blocks:
                assert block.address == at
                at += block.nbytes
            assert at == segment.address + segment.nbytes


@given(programs, settings)
def test_freeing_everything_leaves_one_free_block_a_segment(program, setting):
    # GIVEN a program that has run  WHEN it frees all
    allocator = CachingAllocator(setting)
    for address in list(_play(allocator, program))[-1]:
        allocator.free(address)
    # THEN every segment is one free block, and the cache can be emptied
    assert allocator.allocated_bytes == allocator.requested_bytes == 0
    assert [len(segment.blocks) for segment in allocator.segments()] == [1] * len(allocator.segments())
    allocator.empty_cache()
    assert allocator.segments() == ()
    assert allocator.reserved_bytes == allocator.driver.used_bytes == 0


@given(programs, settings)
def test_the_same_program_gets_the_same_addresses(program, setting):
    runs = [[dict(live) for live in _play(CachingAllocator(setting), program)] for _ in range(2)]
    assert runs[0] == runs[1]


@given(programs)
def test_an_adopted_state_goes_on_as_the_original(program):
    # GIVEN an allocator in the middle of a program, and one that adopted its segments
    first = CachingAllocator()
    for _ in _play(first, program):
        pass
    second = CachingAllocator(driver=Driver(cursor=first.driver.cursor))
    second.adopt(first.segments())
    # WHEN both serve the same further requests  THEN addresses and sums agree
    for nbytes, stream, _ in program:
        assert first.malloc(nbytes, stream) == second.malloc(nbytes, stream)
    assert first.segments() == second.segments()
    assert (first.allocated_bytes, first.reserved_bytes) == (second.allocated_bytes, second.reserved_bytes)


def test_a_medium_request_splits_a_20_mib_segment():
    # GIVEN two requests of 8 MiB and one of 3 MiB + 512 B
    allocator = CachingAllocator()
    first, second, third = (allocator.malloc(n) for n in (8 * MIB, 8 * MIB, 3 * MIB + 512))
    # THEN one segment holds them; its last free piece, under 1 MiB, belongs to the third
    assert (second - first, third - second, allocator.reserved_bytes) == (8 * MIB, 8 * MIB, 20 * MIB)
    assert allocator.allocated_bytes == 20 * MIB
    assert allocator.requested_bytes == 19 * MIB + 512


def test_the_smallest_block_that_fits_serves_and_the_lowest_of_equal_ones():
    # GIVEN free blocks of 30, 20 and 20 MiB, the first at the lowest address
    allocator = CachingAllocator()
    large, low, high = (allocator.malloc(n * MIB) for n in (30, 20, 20))
    for address in (large, high, low):
        allocator.free(address)
    # WHEN 20 MiB are asked for twice, then 19 MiB
    # THEN they come from the low, the high, the large one
    assert [allocator.malloc(n * MIB) for n in (20, 20, 19)] == [low, high, large]


def test_streams_do_not_share_free_blocks():
    allocator = CachingAllocator()
    address = allocator.malloc(4 * MIB, stream=0)
    allocator.free(address)
    assert allocator.malloc(4 * MIB, stream=7) != address
    assert allocator.malloc(4 * MIB, stream=0) == address
    assert {segment.stream for segment in allocator.segments()} == {0, 7}


def test_zero_bytes_take_no_block():
    allocator = CachingAllocator()
    assert allocator.malloc(0) == 0
    allocator.free(0)
    assert allocator.segments() == ()


def test_the_cache_is_given_back_before_memory_runs_out():
    # GIVEN 40 MiB of which 24 are cached in a whole segment
    allocator = CachingAllocator(capacity_bytes=40 * MIB)
    allocator.free(allocator.malloc(24 * MIB))
    # WHEN a larger request comes  THEN the segment goes back first, and that is counted
    allocator.malloc(30 * MIB)
    assert (allocator.reserved_bytes, allocator.stats.num_alloc_retries) == (30 * MIB, 1)
    assert [event.action for event in allocator.segment_events] == ["segment_alloc", "segment_free", "segment_alloc"]


def test_running_out_of_memory_tells_pytorchs_numbers():
    # GIVEN 1 GiB, of which 1000 MiB are reserved and 990 allocated
    allocator = CachingAllocator(capacity_bytes=1024 * MIB)
    allocator.malloc(980 * MIB)
    allocator.malloc(10 * MIB)
    allocator.malloc(5 * MIB)
    # WHEN 30 MiB more are asked for
    with pytest.raises(OutOfMemoryError) as caught:
        allocator.malloc(30 * MIB)
    # THEN the error has the numbers, in PyTorch's words
    error = caught.value
    assert (error.tried_bytes, error.capacity_bytes, error.free_bytes) == (30 * MIB, 1024 * MIB, 14 * MIB)
    assert (error.allocated_bytes, error.reserved_bytes, error.exit_code) == (995 * MIB, 1010 * MIB, 1)
    assert str(error) == (
        "CUDA out of memory. Tried to allocate 30.00 MiB. GPU 0 has a total capacity of 1024.00 MiB of which 14.00 MiB "
        "is free. Of the allocated memory 995.00 MiB is allocated by PyTorch, and 15.00 MiB is reserved by PyTorch but "
        "unallocated."
    )
    # AND the allocator goes on serving what fits
    assert allocator.malloc(2 * MIB)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1000, "1000 bytes"), (2048, "2.00 KiB"), (2**30, "1024.00 MiB"), (3 * 2**29, "1.50 GiB")]
)
def test_sizes_in_the_message_are_written_as_pytorch_writes_them(nbytes, text):
    error = OutOfMemoryError(tried_bytes=nbytes, capacity_bytes=0, free_bytes=0, allocated=0, reserved=0)
    assert f"Tried to allocate {text}. " in str(error)


def test_a_free_of_anything_else_is_refused():
    allocator = CachingAllocator()
    address = allocator.malloc(4 * KIB)
    allocator.free(address)
    with pytest.raises(InternalError, match="no live block begins there"):
        allocator.free(address)


def test_expandable_segments_merge_what_plain_ones_cannot():
    # GIVEN 100 MiB used as 5 x 20 MiB, then freed  WHEN 100 MiB are asked for in one piece
    reserved = {}
    for expandable in (False, True):
        allocator = CachingAllocator(AllocatorSettings(expandable_segments=expandable))
        for address in [allocator.malloc(20 * MIB) for _ in range(5)]:
            allocator.free(address)
        allocator.malloc(100 * MIB)
        reserved[expandable] = allocator.reserved_bytes
    # THEN plain segments need 100 MiB more
    assert reserved == {False: 200 * MIB, True: 100 * MIB}


def test_empty_pages_move_to_where_memory_is_needed():
    # GIVEN 60 MiB in pages of 20 MiB, the first and last in use
    allocator = CachingAllocator(AllocatorSettings(expandable_segments=True), capacity_bytes=60 * MIB)
    first, middle, _ = (allocator.malloc(20 * MIB) for _ in range(3))
    allocator.free(middle)
    # WHEN another stream needs 20 MiB and the driver has none left
    allocator.malloc(20 * MIB, stream=1)
    # THEN the empty page is unmapped and mapped there
    assert [(e.action, e.nbytes, e.stream) for e in allocator.segment_events[-2:]] == [
        ("segment_unmap", 20 * MIB, 0),
        ("segment_map", 20 * MIB, 1),
    ]
    assert (first, allocator.reserved_bytes, len(allocator.segments())) == (first, 60 * MIB, 3)


def test_large_blocks_are_not_split_beyond_the_limit():
    # GIVEN a free block of 60 MiB and a limit of 40
    allocator = CachingAllocator(parse_settings("max_split_size_mb:40"))
    block = allocator.malloc(60 * MIB)
    allocator.free(block)
    # THEN a small request leaves it alone, one within 20 MiB of it takes it whole
    assert allocator.malloc(30 * MIB) != block
    assert allocator.malloc(45 * MIB) == block
    assert allocator.allocated_bytes == 90 * MIB


def test_oversize_blocks_go_back_before_the_whole_cache_does():
    # GIVEN a cache of 60 and 20 MiB, no memory left, and a limit of 40
    allocator = CachingAllocator(parse_settings("max_split_size_mb:40"), capacity_bytes=80 * MIB)
    for address in [allocator.malloc(n * MIB) for n in (60, 20)]:
        allocator.free(address)
    # WHEN 30 MiB are needed  THEN only the oversize block goes back, and no retry is counted
    allocator.malloc(30 * MIB)
    freed = [event.nbytes for event in allocator.segment_events if event.action == "segment_free"]
    assert (freed, allocator.stats.num_alloc_retries) == ([60 * MIB], 0)


def test_a_memory_fraction_is_a_limit_below_the_capacity():
    allocator = CachingAllocator(parse_settings("per_process_memory_fraction:0.5"), 100 * MIB)
    allocator.malloc(40 * MIB)
    with pytest.raises(OutOfMemoryError, match=r"100\.00 MiB of which 60\.00 MiB is free"):
        allocator.malloc(20 * MIB)


def test_idle_segments_are_collected_above_the_threshold():
    # GIVEN an allowance of 100 MiB, a threshold of 50 MiB, and 60 MiB idle in two segments, the older of 40
    setting = parse_settings("per_process_memory_fraction:1.0,garbage_collection_threshold:0.5")
    allocator = CachingAllocator(setting, 100 * MIB)
    old, new = allocator.malloc(40 * MIB), allocator.malloc(20 * MIB)
    allocator.free(old)
    allocator.malloc(512)
    allocator.free(new)
    # WHEN the next request needs the driver  THEN the older one has gone back, though there was room
    allocator.malloc(30 * MIB, stream=1)
    assert [e.nbytes for e in allocator.segment_events if e.action == "segment_free"][:1] == [40 * MIB]


@given(programs, programs, settings)
def test_another_allocator_goes_on_where_one_stopped(before, after, setting):
    # GIVEN an allocator in use, and a second one that takes its segments over
    first = CachingAllocator(setting, 2**30)
    with suppress(OutOfMemoryError):
        for nbytes, stream, _ in before:
            first.malloc(nbytes, stream)
    live = [b.address for s in first.segments() for b in s.blocks if b.allocated]
    for address in live[::2]:
        first.free(address)
    second = CachingAllocator(setting, driver=Driver(capacity_bytes=2**30, cursor=first.driver.cursor))
    second.adopt(first.segments())
    assert second.segments() == first.segments()
    # WHEN both serve the same requests  THEN they give the same addresses and hold the same segments
    with suppress(OutOfMemoryError):
        for nbytes, stream, _ in after:
            assert second.malloc(nbytes, stream) == first.malloc(nbytes, stream)
    if not setting.garbage_collection_threshold:  # which goes by the age of a block, and a segment does not tell it
        assert second.segments() == first.segments()
