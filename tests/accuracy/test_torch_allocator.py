"""The simulated allocator against PyTorch's own, on random programs: every address, driver call and refusal.

The programs ran on the CUDA build of PyTorch over a stub of the driver, 1 GiB of device memory, 3 streams. A call is
[stream, bytes], [-1, index of the allocation to free] or [-2, 0] for `torch.cuda.empty_cache`.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.allocator_settings import parse_settings
from dnnmem.estimator.driver_memory import Driver
from dnnmem.estimator.out_of_memory import OutOfMemoryError

PROGRAMS = json.loads(gzip.decompress((Path(__file__).parent / "data" / "torch_programs.json.gz").read_bytes()))[
    "programs"
]
BASE = 2**40


def _address(allocator: CachingAllocator, stream: int, nbytes: int) -> int | None:
    try:
        return allocator.malloc(nbytes, stream) - BASE
    except OutOfMemoryError:
        return None


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program["settings"] or "default")
def test_every_address_and_driver_call_is_pytorchs(program):
    # GIVEN the settings and the memory of the recorded run
    driver = Driver(capacity_bytes=program["capacity_bytes"], cursor=BASE)
    settings = parse_settings(program["settings"])
    allocator = CachingAllocator(settings, device_bytes=program["device_bytes"], driver=driver)
    # WHEN the same calls are made
    addresses: list[int | None] = []
    for stream, value in program["calls"]:
        if stream >= 0:
            addresses.append(_address(allocator, stream, value))
        elif stream == -1:
            allocator.free(BASE + addresses[value])
        else:
            allocator.empty_cache()
    # THEN addresses, refusals, what was asked of the driver, and what is held are the same
    assert addresses == program["addresses"]
    calls = [[e.action, e.address - BASE, e.nbytes, e.stream] for e in allocator.segment_events]
    assert calls == program["driver_calls"]
    assert allocator.allocated_bytes == program["allocated_bytes"]
    assert allocator.reserved_bytes == program["reserved_bytes"]


def test_the_programs_reach_the_driver_and_run_out_of_memory():
    assert len(PROGRAMS) == 8
    for program in PROGRAMS:
        assert program["addresses"].count(None) > 20
        asked = (
            {"segment_map", "segment_unmap"}
            if "expandable" in program["settings"]
            else {"segment_alloc", "segment_free"}
        )
        assert {action for action, *_ in program["driver_calls"]} == asked
