"""Snapshots of small programs on PyTorch's own allocator: each is read, measured and replayed, address by address."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dnnmem.profilers.snapshot import load_snapshot
from dnnmem.profilers.snapshot_start import settings_of, starting_segments
from dnnmem.profilers.snapshot_trace import snapshot_trace
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.accuracy.snapshot_programs import record
from tests.accuracy.snapshot_replay import difference

GROWS = "expandable_segments:True"
CASES = {
    "pools": ("pools", "", 10**6),
    "graphs": ("graphs", GROWS, 10**6),
    "two-gpus": ("two_gpus", "", 10**6),
    "streams-ring": ("streams", "", 100),
    "full-ring": ("full", GROWS, 150),
    "full-split": ("full", "max_split_size_mb:32", 10**6),
}


@pytest.fixture(autouse=True)
def _virtual_gpu() -> None:
    if reason := unavailable():
        pytest.skip(f"no virtual GPU: {reason}")


@pytest.mark.parametrize(("program", "conf", "entries"), CASES.values(), ids=CASES)
def test_a_snapshot_is_measured_and_replayed(program, conf, entries, tmp_path):
    # GIVEN a program's snapshot, with all of its history or the last of it, and what its allocator counted
    path = record(program, tmp_path / "memory.pickle", conf=conf, entries=entries)
    for device, peaks in enumerate(json.loads(path.with_suffix(".json").read_text())):
        # WHEN it is read and replayed
        snapshot = load_snapshot(path, device)
        _, measured, curve = snapshot_trace(snapshot, "program")
        # THEN each address, each call of the driver and the segments at the end are the recorded ones
        assert len(snapshot.history) >= min(entries, 80)
        assert difference(snapshot) is None
        # and so are the peaks, if nothing of the history is lost
        if not starting_segments(snapshot):
            assert measured.reserved_bytes == peaks["reserved_bytes"]
            assert int(curve.active.max()) == peaks["requested_bytes"]


def test_garbage_collection_goes_by_a_fraction_that_no_file_holds(tmp_path):
    # GIVEN a program that set its own memory fraction of 1 GiB
    path = record("fraction", tmp_path / "memory.pickle", conf="garbage_collection_threshold:0.4")
    snapshot = load_snapshot(path)
    # THEN the replay is the recorded one where it is told the fraction, and another one where it is not
    told = replace(settings_of(snapshot), memory_fraction=0.6)
    assert difference(snapshot, told, device_bytes=2**30) is None
    assert "out of memory" in (difference(snapshot) or "")
