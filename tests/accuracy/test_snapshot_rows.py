"""What `benchmarks/snapshot_rows.py` and `recorder_rows.py` judge, and the results of them that are kept."""

from __future__ import annotations

import importlib.util
import pickle
import sys

import pytest

KIB = 2**10


@pytest.fixture(scope="module", params=["snapshot_rows", "recorder_rows"])
def benchmark(request, root):
    return load(root, request.param)


@pytest.fixture(scope="module")
def snapshots(root):
    return load(root, "snapshot_rows")


def load(root, name):
    spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_what_is_saved_is_kept(benchmark):
    # GIVEN the results that the documentation shows  THEN each one is what was promised
    results = benchmark.load_results()
    assert len(results) >= 17
    assert [result for result in results if not result.kept] == []


def test_the_tables_stand_in_the_documentation(benchmark, root):
    assert benchmark.table(benchmark.load_results()) in (root / "docs" / "accuracy.md").read_text("utf-8")


def write_snapshot(path, events, nbytes, *, total=2048 * KIB):
    """A snapshot of one segment, which holds a block of `nbytes` at its end."""
    block = {"address": 0, "size": nbytes, "requested_size": nbytes, "state": "active_allocated"}
    rest = {"address": nbytes, "size": total - nbytes, "requested_size": 0, "state": "inactive"}
    segment = {
        "address": 0, "total_size": total, "stream": 0, "segment_type": "small", "device": 0, "blocks": [block, rest],
        "is_expandable": False,
    }  # fmt: skip
    history = [{"action": action, "addr": 0, "size": size, "stream": 0} for action, size in events]
    path.write_bytes(pickle.dumps({"segments": [segment], "device_traces": [history]}, protocol=4))
    return path


def test_histories_are_compared_event_by_event(snapshots, tmp_path):
    # GIVEN two histories that end with 512 KiB alive; one of them had another block before, of 1 or 2 KiB
    first = [("alloc", 1 * KIB), ("free_requested", 1 * KIB), ("free_completed", 1 * KIB), ("alloc", 512 * KIB)]
    other = [("alloc", 2 * KIB), ("free_requested", 2 * KIB), ("free_completed", 2 * KIB), ("alloc", 512 * KIB)]
    published = write_snapshot(tmp_path / "a", first, 512 * KIB)
    reproduced = write_snapshot(tmp_path / "b", other, 512 * KIB)
    # WHEN they are judged
    same = snapshots.judge("run", "a.pickle", published, published)
    different = snapshots.judge("run", "a.pickle", published, reproduced)
    # THEN equal ones are kept, and of the others the events that differ are counted
    assert (same.events, same.equal_events, same.kept) == (4, 4, True)
    assert (different.equal_events, different.error, different.kept) == (1, 0, False)


def test_a_peak_in_the_middle_is_found(snapshots, tmp_path):
    # GIVEN 512 KiB at the end, and before that 1 MiB for a moment
    events = [
        ("alloc", 1024 * KIB),
        ("free_requested", 1024 * KIB),
        ("free_completed", 1024 * KIB),
        ("alloc", 512 * KIB),
    ]
    path = write_snapshot(tmp_path / "a", events, 512 * KIB)
    # WHEN THEN
    assert snapshots.judge("run", "a", path, path).reproduced_allocated_bytes == 1024 * KIB
