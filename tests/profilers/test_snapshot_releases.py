"""Files of all releases since 2.0, each with what it wrote then: what is absent is empty, and the rest is read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from dnnmem.estimator.segment import BlockInfo
from dnnmem.profilers.snapshot import load_snapshot
from dnnmem.profilers.snapshot_start import settings_of, starting_segments
from dnnmem.profilers.snapshot_trace import snapshot_trace

MIB = 2**20
LARGE = 2**40
FRAMES = [{"name": "forward", "filename": "/a/model.py", "line": 41}]


def _data(since: tuple[int, int], *, traces: bool = True) -> dict[str, Any]:
    """5 MiB live, 15 MiB cached, as a release writes it.

    The fields are those of `memory_snapshot` and `_snapshot` in torch/csrc/cuda/Module.cpp of that release: a block's
    `history` became `frames` in 2.1, when blocks of a segment got an address and segments a pool and `is_expandable`.
    """
    old = since < (2, 1)
    live: dict[str, Any] = {"size": 5 * MIB, "requested_size": 5 * MIB - 8, "state": "active_allocated"}
    live |= {"history": [{"addr": LARGE, "real_size": 5 * MIB, "frames": FRAMES}]} if old else {"frames": FRAMES}
    free: dict[str, Any] = {"size": 15 * MIB, "requested_size": 0, "state": "inactive"}
    free |= {} if old else {"frames": []}
    segment: dict[str, Any] = {
        "device": 0, "address": LARGE, "total_size": 20 * MIB, "allocated_size": 5 * MIB, "active_size": 5 * MIB,
        "stream": 0, "segment_type": "large", "blocks": [live, free],
    }  # fmt: skip
    if not old:
        live["address"], free["address"] = LARGE, LARGE + 5 * MIB
        segment |= {"segment_pool_id": (0, 0), "is_expandable": False, "frames": []}
    calls = [("segment_alloc", 20 * MIB), ("alloc", 5 * MIB - 8)]
    trace = [{"action": action, "addr": LARGE, "size": n, "stream": 0} for action, n in calls]
    for entry in trace:
        if not old:
            entry |= {"time_us": 1, "frames": FRAMES}
        if since >= (2, 8):
            entry["compile_context"] = "N/A"
        if since >= (2, 14):
            entry |= {"user_metadata": "", "pool_id": (0, 0)}
    data: dict[str, Any] = {"segments": [segment]}
    if traces:
        data["device_traces"] = [trace]
    if not old:
        settings: dict[str, Any] = {"PYTORCH_CUDA_ALLOC_CONF": "", "max_split_size": -1}
        data["allocator_settings"] = settings
        if since >= (2, 9):
            settings["graph_capture_record_stream_reuse"] = False
    return data


def _write(tmp_path: Path, data: dict[str, Any]) -> Path:
    path = tmp_path / "memory.pickle"
    path.write_bytes(pickle.dumps(data))
    return path


@pytest.mark.parametrize("since", [(2, 0), (2, 1), (2, 8), (2, 9), (2, 14)])
def test_files_of_all_releases_say_the_same(since, tmp_path):
    # WHEN
    snapshot = load_snapshot(_write(tmp_path, _data(since)))
    # THEN
    assert snapshot.segments[0].blocks == (
        BlockInfo(LARGE, 5 * MIB, 5 * MIB - 8, allocated=True),
        BlockInfo(LARGE + 5 * MIB, 15 * MIB, 0, allocated=False),
    )
    assert [call.action for call in snapshot.history] == ["segment_alloc", "alloc"]
    assert snapshot.block_frames == {LARGE: FRAMES}
    assert snapshot.since == since
    assert settings_of(snapshot).max_split_bytes is None
    assert starting_segments(snapshot) == ()


def test_a_history_without_frames_is_a_timeline_with_a_note(tmp_path):
    trace, measured, curve = snapshot_trace(load_snapshot(_write(tmp_path, _data((2, 0)))), "old.pickle")
    assert (measured.reserved_bytes, int(curve.allocated.max())) == (20 * MIB, 5 * MIB - 8)
    assert any("no stack frames" in note for note in trace.origin.notes)


def test_a_file_without_traces_tells_what_was_held(tmp_path):
    # GIVEN a file in which nothing was recorded, and in it no traces at all
    trace, measured, _ = snapshot_trace(load_snapshot(_write(tmp_path, _data((2, 0), traces=False)), None), "old")
    # THEN
    assert measured.reserved_bytes == 20 * MIB
    assert [(s.nbytes, s.module) for s in trace.storages.values()] == [(5 * MIB - 8, ("model",))]
    assert any("has no history" in note for note in trace.origin.notes)


def test_what_a_file_shows_beside_a_step_is_said(tmp_path):
    # GIVEN a file of two GPUs; the program has run out of memory on the first, and held 3 MiB there before
    data = _data((2, 14))
    gone = {"addr": LARGE + 5 * MIB, "size": 3 * MIB, "stream": 0, "frames": [], "pool_id": (0, 0)}
    data["device_traces"][0][:1] = [
        {"action": "free_requested", **gone},
        {"action": "free_completed", **gone},
        {"action": "oom", "device_free": 1, "size": 64 * MIB, "stream": 0, "frames": [], "pool_id": (0, 0)},
    ]
    data["device_traces"].append(data["device_traces"][0][-1:])
    # WHEN
    notes = snapshot_trace(load_snapshot(_write(tmp_path, data), 0), "two.pickle")[0].origin.notes
    # THEN
    assert "The program ran out of memory once, the first time when it asked for 64.0 MiB." in notes
    assert "The history begins when memory was held already; a peak before that is not in the file." in notes
    assert "This is GPU 0; the file has GPU 1 too: --index N shows that." in notes
