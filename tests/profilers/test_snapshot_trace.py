"""A snapshot as a trace: what each block was for, whose it was, and when most was held."""

from __future__ import annotations

import pickle
from itertools import count

import pytest

from dnnmem.estimator.build import build_profile
from dnnmem.estimator.timeline import timeline
from dnnmem.estimator.trace import Kind
from dnnmem.profilers.snapshot import load_snapshot
from dnnmem.profilers.snapshot_trace import AFTER, BEFORE, snapshot_trace

MIB = 2**20
BASE = 2**40
MAIN = {"name": "<module>", "filename": "/home/me/train.py", "line": 9}
MODEL = {"name": "forward", "filename": "/home/me/model.py", "line": 41}
BLOCK = {"name": "forward", "filename": "/home/me/block.py", "line": 12}
LINEAR = {"name": "forward", "filename": "/usr/lib/python3/torch/nn/modules/linear.py", "line": 125}
MM = {"name": "at::_ops::mm::call(at::Tensor const&, at::Tensor const&)", "filename": "??", "line": 0}
ENGINE = {"name": "torch::autograd::Engine::thread_main(std::shared_ptr<...> const&)", "filename": "??", "line": 0}
NODE = {"name": "torch::autograd::generated::MmBackward0::apply(std::vector<...>&&)", "filename": "??", "line": 0}
ADAMW = {"name": "step", "filename": "/usr/lib/python3/torch/optim/adamw.py", "line": 220}
BUILD = {"name": "__init__", "filename": "/home/me/model.py", "line": 20}

FORWARD = [MM, LINEAR, BLOCK, MODEL, MAIN]
BACKWARD = [MM, NODE, ENGINE]
STEP = [ADAMW, MAIN]


def training_step(*, frames=True):
    """A step of one 4 MiB layer, recorded after it was built; its two states appear in the step."""
    ticks = count()
    entries, live = [], {}

    def call(action, block, nbytes, stack):
        address = BASE + block * 4 * MIB
        if action == "alloc":
            live[address] = nbytes
        elif action == "free_completed":
            del live[address]
        entries.append(
            {"action": action, "addr": address, "size": nbytes, "stream": 0, "time_us": next(ticks),
             "frames": stack if frames else []}
        )  # fmt: skip

    live[BASE] = live[BASE + 4 * MIB] = 4 * MIB  # two weights, held when the recording begins
    call("alloc", 2, 4 * MIB, FORWARD)  # an activation
    call("alloc", 3, 2 * MIB, FORWARD)  # and what only the forward needs
    call("free_requested", 3, 2 * MIB, FORWARD)
    call("free_completed", 3, 2 * MIB, FORWARD)
    for block in (3, 4):  # a gradient for each weight
        call("alloc", block, 4 * MIB, BACKWARD)
    for action in ("free_requested", "free_completed"):
        call(action, 2, 4 * MIB, BACKWARD)
    for block in (5, 6):  # a state for each
        call("alloc", block, 4 * MIB, STEP)
    call("alloc", 7, 4 * MIB, STEP)
    for action in ("free_requested", "free_completed"):
        call(action, 7, 4 * MIB, STEP)
    for block in (3, 4):
        for action in ("free_requested", "free_completed"):
            call(action, block, 4 * MIB, [MAIN])
    blocks = [
        {"address": at, "size": 4 * MIB, "requested_size": live.get(at, 0), "frames": [],
         "state": "active_allocated" if at in live else "inactive"}
        for at in range(BASE, BASE + 40 * MIB, 4 * MIB)
    ]  # fmt: skip
    segment = {
        "device": 0, "address": BASE, "total_size": 40 * MIB, "stream": 0, "segment_type": "large",
        "is_expandable": False, "blocks": blocks, "frames": [],
    }  # fmt: skip
    return {"segments": [segment], "device_traces": [entries], "allocator_settings": {}}


def _load(tmp_path, data):
    path = tmp_path / "memory.pickle"
    path.write_bytes(pickle.dumps(data, protocol=4))
    return snapshot_trace(load_snapshot(path, None), "memory.pickle")


def test_kinds_follow_from_where_a_block_was_made_and_when_it_was_freed(tmp_path):
    # WHEN
    trace, measurement, curve = _load(tmp_path, training_step())
    # THEN the trace keeps its own rules, and each block is what it was
    trace.check()
    kinds = [trace.storages[i].kind for i in range(len(trace.storages))]
    assert kinds == [
        Kind.PARAM, Kind.PARAM, Kind.ACTIVATION, Kind.TEMP, Kind.GRAD, Kind.GRAD,
        Kind.OPTIMIZER, Kind.OPTIMIZER, Kind.TEMP,
    ]  # fmt: skip
    assert measurement.reserved_bytes == 40 * MIB
    assert timeline(trace).allocated.max() == 28 * MIB
    assert curve.reserved.tolist() == [40 * MIB] * len(curve.allocated)
    assert (curve.active >= curve.allocated).all()


def test_modules_and_lines_come_from_the_frames(tmp_path):
    trace, _, _ = _load(tmp_path, training_step())
    forward = trace.ops[0]
    assert (forward.name, forward.module, forward.source) == (
        "aten.mm",
        ("model", "block@41", "Linear@12"),
        "block.py:12",
    )
    assert [op.module for op in trace.ops[1:3]] == [("<backward>",), ("<optimizer>",)]
    layers = {row.module: row for row in build_profile(trace, _load(tmp_path, training_step())[1], None).layers}
    assert layers["model.block@41.Linear@12"].activation_bytes == 4 * MIB


def test_without_frames_the_bytes_are_still_true_and_the_report_says_so(tmp_path):
    trace, _, _ = _load(tmp_path, training_step(frames=False))
    trace.check()
    assert timeline(trace).allocated.max() == 28 * MIB
    assert any("no stack frames" in note for note in trace.origin.notes)


def test_a_file_without_history_says_what_is_held(tmp_path):
    # GIVEN
    data = training_step()
    data["device_traces"] = [[]]
    # WHEN
    trace, _, _ = _load(tmp_path, data)
    # THEN both weights and both states are there, and nobody knows which is which
    assert [s.kind for s in trace.storages.values()] == [Kind.UNKNOWN] * 4
    assert trace.pinned_bytes() == 16 * MIB
    assert any("no history" in note for note in trace.origin.notes)


def test_what_is_freed_within_comes_from_a_first_op_and_what_is_left_goes_to_a_last_one(tmp_path):
    # GIVEN a history that begins in the middle of the step
    data = training_step()
    data["device_traces"] = [data["device_traces"][0][6:]]
    # WHEN
    trace, _, _ = _load(tmp_path, data)
    # THEN
    trace.check()
    assert (trace.ops[0].name, trace.ops[-1].name) == (BEFORE, AFTER)
    assert timeline(trace).allocated.max() == 28 * MIB


@pytest.mark.parametrize("device", [0, 1])
def test_the_busiest_gpu_of_a_file_is_taken(tmp_path, device):
    # GIVEN a file of two GPUs, one of which did something
    data = training_step()
    data["segments"][0]["device"] = device
    data["device_traces"] = [data["device_traces"][0] if i == device else [] for i in range(2)]
    # THEN
    assert _load(tmp_path, data)[0].peak_bytes() == 28 * MIB
