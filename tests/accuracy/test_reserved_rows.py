"""What `benchmarks/reserved_rows.py` judges, and the results of it that are kept."""

from __future__ import annotations

import statistics

import pytest

from tests.accuracy.test_snapshot_rows import load


@pytest.fixture(scope="module")
def rows(root):
    return load(root, "reserved_rows")


def test_a_replay_reserves_what_torch_did(rows):
    # GIVEN the results that are kept  THEN the simulated allocator reserved the same, to the byte
    results = rows.load_results()
    assert results
    assert [r for r in results if r.replayed_bytes != r.virtual_bytes] == []


def test_fake_reserves_as_much(rows):
    # GIVEN the results that are kept  THEN half of them are nearer than the median aimed at, and all than the worst
    errors = [abs(r.error) for r in rows.load_results()]
    assert statistics.median(errors) <= rows.MEDIAN
    assert max(errors) <= rows.WORST


def test_the_targets_are_six_samples_and_ten_of_each_library(rows):
    # WHEN the targets are counted by where they come from
    counts = {family: sum(t.startswith(family) for t in rows.TARGETS) for family in ("sample", "torch", "timm", "hf")}
    # THEN
    assert counts == {"sample": 6, "torch": 10, "timm": 10, "hf": 10}
    # AND none of them is among those that were first run when the rules had been written
    assert not set(rows.TARGETS) & set(rows.UNSEEN)
    # AND each GPU has its share
    assert {gpu for _, gpu in rows.pairs(rows.TARGETS)} == set(rows.GPUS)


@pytest.mark.parametrize(
    ("replayed", "fake", "kept"), [(100, 100, True), (100, 102, True), (100, 104, False), (101, 100, False)]
)
def test_what_is_kept(rows, replayed, fake, kept):
    # GIVEN a step that reserved 100 bytes  WHEN it is replayed and faked  THEN the first is exact, the second near
    result = rows.Result(
        target="t", gpu="h100-sxm-80gb", virtual_bytes=100, replayed_bytes=replayed, fake_bytes=fake, torch="2"
    )
    assert result.kept is kept
