"""Traces written as memory snapshots: PyTorch's own reader takes them, and what they say is the trace."""

from __future__ import annotations

import importlib.util
import io

import pytest

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.timeline import timeline
from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace
from dnnmem.profilers.snapshot import load_snapshot, read_pickle
from dnnmem.profilers.snapshot_file import save_snapshot
from dnnmem.profilers.snapshot_trace import snapshot_trace

MIB = 2**20


def step():
    storages = {
        0: Storage(id=0, nbytes=30 * MIB, kind=Kind.PARAM, module=("fc",), name="weight"),
        1: Storage(id=1, nbytes=5 * MIB, kind=Kind.ACTIVATION, module=("fc",)),
    }
    first = Op(
        name="aten.mm", module=("fc",), source="model.py:7", events=(Event(5 * MIB, 0, 1), Event(3 * MIB, 0, -1),
                                                                     Event(-3 * MIB, 0, -1)),
    )  # fmt: skip
    return Trace(
        ops=(first, Op(name="aten.mul", events=(Event(-5 * MIB, 0, 1),))), storages=storages, pinned=frozenset({0})
    )


def test_a_written_snapshot_reads_back_as_the_step(tmp_path):
    # GIVEN
    trace = step()
    # WHEN
    assert save_snapshot(trace, tmp_path / "o.pickle") == 6
    snapshot = load_snapshot(tmp_path / "o.pickle")
    again, measurement, curve = snapshot_trace(snapshot, "o")
    # THEN its bytes over time, its segments and its peak are the trace's
    assert timeline(again).allocated.tolist() == timeline(trace).allocated.tolist()
    played = replay_trace(trace)
    assert curve.reserved.max() == played.peak_reserved_bytes
    assert measurement.reserved_bytes == played.peak_reserved_bytes == 50 * MIB
    assert sum(segment.nbytes for segment in snapshot.segments) == played.reserved_bytes


def test_pytorchs_own_reader_draws_it(tmp_path):
    # GIVEN the module behind torch.cuda._memory_viz, which needs no GPU
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec("torch.cuda._memory_viz")
    assert torch is not None
    assert spec is not None
    viz = importlib.import_module("torch.cuda._memory_viz")
    save_snapshot(step(), tmp_path / "o.pickle")
    data = read_pickle(io.BytesIO((tmp_path / "o.pickle").read_bytes()), "o.pickle")
    # WHEN  THEN
    assert "30.0MiB" in viz.segsum(data)
    assert len(viz.trace(data).splitlines()) > 6
    assert "MemoryViz" in viz.trace_plot(data)
    assert "MemoryViz" in viz.segment_plot(data)


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="cannot write the snapshot"):
        save_snapshot(step(), tmp_path / "none" / "o.pickle")
    assert list(tmp_path.iterdir()) == []
