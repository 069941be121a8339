from __future__ import annotations

from dataclasses import fields

import pytest

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.allocator_versions import CHANGES, TESTED, AllocatorRules, release_of, rules_of

MIB = 2**20


def test_every_rule_has_a_change_and_every_change_a_tested_release():
    assert {change.name for change in CHANGES} == {field.name for field in fields(AllocatorRules)}
    assert {change.since for change in CHANGES} <= {release_of(version) for version in TESTED}


def test_a_release_between_two_tested_ones_has_the_rules_of_the_earlier():
    assert rules_of("2.13.0") == rules_of("2.9.1") != rules_of("2.14.1") == rules_of("3.0") == AllocatorRules()


@pytest.mark.parametrize(("version", "active"), [("2.9.1", 2), ("2.14.1", 1)])
def test_a_pool_in_use_keeps_what_other_streams_used_through_2_9(version, active):
    # GIVEN a block that another stream used when it was freed, and a pool that serves stream 5
    allocator = CachingAllocator(rules=rules_of(version))
    used = allocator.malloc(MIB)
    allocator.record_stream(used, stream=3)
    allocator.free(used)
    allocator.private.begin(1, stream=5)
    # WHEN stream 0 asks for more  THEN only since 2.14 the first block is free by then
    allocator.malloc(MIB)
    assert allocator.stats.active == active


def test_a_pool_in_use_forbids_the_retry_through_2_9():
    # GIVEN 30 of 40 MiB cached, which another stream cannot use
    counts = {}
    for version in ("2.9.1", "2.14.1"):
        allocator = CachingAllocator(capacity_bytes=40 * MIB, rules=rules_of(version))
        allocator.free(allocator.malloc(30 * MIB))
        allocator.private.begin(1, stream=5)
        # WHEN stream 7 asks for 20 MiB
        try:
            allocator.malloc(20 * MIB, stream=7)
        except Exception as error:  # noqa: BLE001
            counts[version] = type(error).__name__
        else:
            counts[version] = "served"
    # THEN only since 2.14 the cache is emptied for it
    assert counts == {"2.9.1": "OutOfMemoryError", "2.14.1": "served"}
