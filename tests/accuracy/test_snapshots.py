"""The simulated allocator against histories of real GPUs: every address, every segment, in order."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.driver_memory import Driver
from tests.accuracy.histories import FOLDER, History, read

HISTORIES = {path.name.removesuffix(".json.gz"): path for path in sorted(FOLDER.glob("*.json.gz"))}
COUNTS = {
    "transformer_1024_training": (7591, 0),
    "transformer_128_training": (6526, 0),
    "transformer_512_inference": (1666, 0),
    "xl_ctx128_forward_mixed": (2703, 461),
    "xl_ctx256_forward": (2057, 758),
}
"""Allocations and segment events in each file: a reading that drops some would pass the comparisons below."""


@pytest.fixture(params=sorted(HISTORIES))
def history(request) -> History:
    return read(HISTORIES[request.param])


def test_the_files_are_those_that_were_counted():
    counts = {}
    for name, path in HISTORIES.items():
        actions = [call.action for call in read(path).calls]
        counts[name] = (actions.count("alloc"), sum(action.startswith("segment") for action in actions))
    assert counts == COUNTS


def test_every_address_and_segment_is_the_gpus(history):
    # GIVEN the GPU's state before the history, and the addresses its driver gave
    given = deque(call for call in history.calls if call.action == "segment_alloc")
    allocator = CachingAllocator(driver=Driver(next_address=lambda _: given.popleft().address))
    allocator.adopt(history.start)
    # WHEN its calls are played (a run of freed segments is one emptying of the cache)
    previous = ""
    for call in history.calls:
        if call.action == "alloc":
            assert allocator.malloc(call.nbytes, call.stream) == call.address
        elif call.action == "free_completed":
            allocator.free(call.address)
        elif call.action == "segment_free" != previous:
            allocator.empty_cache()
        previous = call.action
    # THEN the calls of the driver, and what is held at the end, block by block, are the GPU's
    assert allocator.segment_events == [call for call in history.calls if call.action.startswith("segment")]
    assert allocator.segments() == history.end


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_reserved_bytes_do_not_need_the_drivers_addresses(history, order):
    # GIVEN addresses of our own making, above or below all of the GPU's
    top = max(segment.address + segment.nbytes for segment in (*history.start, *history.end))
    ladder = iter(range(2**50, 0, -(2**36)))
    driver = Driver(cursor=top) if order == "ascending" else Driver(next_address=lambda _: next(ladder))
    allocator = CachingAllocator(driver=driver)
    allocator.adopt(history.start)
    where = {b.address: b.address for segment in history.start for b in segment.blocks if b.allocated}
    # WHEN the calls are played  THEN reserved bytes are the GPU's after each allocation
    reserved = sum(segment.nbytes for segment in history.start)
    for before, call in pairwise((None, *history.calls)):
        if call.action == "alloc":
            where[call.address] = allocator.malloc(call.nbytes, call.stream)
            assert allocator.reserved_bytes == reserved
        elif call.action == "free_completed":
            allocator.free(where.pop(call.address))
        elif call.action == "segment_alloc":
            reserved += call.nbytes
        else:
            reserved -= call.nbytes
            if before is None or before.action != "segment_free":
                allocator.empty_cache()
