from __future__ import annotations

import pytest

from dnnmem.estimator.alive import alive_at_moments, alive_groups, fold_paths, held_by_module
from dnnmem.estimator.timeline import timeline
from dnnmem.estimator.trace import Kind, Storage, Trace
from tests.strategies import step_trace


def test_what_is_alive_at_the_peak_of_the_step_made_by_hand():
    # GIVEN the step with n = 1, which peaks in the optimizer  WHEN its peak is listed
    trace = step_trace(1)
    lines = alive_groups(trace, timeline(trace).peak)
    # THEN every byte is there, and the temporary inside the op has the op's name and line
    assert [(line.kind, line.module, line.name, line.nbytes) for line in lines] == [
        ("temp", "<optimizer>", "add", 64),
        ("param", "fc", "weight", 64),
        ("grad", "fc", "weight", 64),
        ("optimizer", "fc", "weight.momentum_buffer", 64),
        ("input", "", "", 16),
    ]
    assert lines[0].source == "model.py:7"
    assert sum(line.nbytes for line in lines) == trace.peak_bytes()


def test_what_an_op_made_has_the_ops_name():
    trace = step_trace(8)
    names = {line.name for line in alive_groups(trace, timeline(trace).peak) if line.kind == "activation"}
    assert names == {"mm", "relu"}


def test_blocks_alike_share_a_line():
    # GIVEN twelve equal weights, one that differs in shape, and one of a name that sorts first
    weights = [
        Storage(id=i, nbytes=8, kind=Kind.PARAM, shape=(2,), module=("h", str(i), "fc"), name="w") for i in range(12)
    ]
    weights.append(Storage(id=12, nbytes=8, kind=Kind.PARAM, shape=(2, 1), module=("h", "12", "fc"), name="w"))
    trace = Trace(ops=(), storages={s.id: s for s in weights}, pinned=frozenset(range(13)))
    # WHEN they are listed  THEN twelve are one line with their range
    assert [(line.module, line.count, line.nbytes) for line in alive_groups(trace, 0)] == [
        ("h.0-11.fc", 12, 96),
        ("h.12.fc", 1, 8),
    ]


def test_only_the_largest_are_listed_and_nothing_empty():
    blocks = {i: Storage(id=i, nbytes=i, kind=Kind.PARAM, name=f"w{i}") for i in range(60)}
    trace = Trace(ops=(), storages=blocks, pinned=frozenset(blocks))
    assert [line.nbytes for line in alive_groups(trace, 0)] == list(range(59, 19, -1))
    assert len(alive_groups(trace, 0, most=100)) == 59


def test_one_pass_over_the_step_lists_every_moment_as_asking_for_each_does():
    # GIVEN a step  WHEN what is alive is listed after every event, in one pass and one by one
    trace = step_trace(3)
    moments = range(len(timeline(trace).allocated))
    # THEN the two agree, and every byte is there
    found = list(alive_at_moments(trace, moments))
    assert found == [alive_groups(trace, index) for index in moments]
    assert [sum(line.nbytes for line in lines) for lines in found] == timeline(trace).allocated.tolist()


@pytest.mark.parametrize("index", [-1, 10**6])
def test_a_moment_outside_of_the_step_is_refused(index):
    with pytest.raises(IndexError, match="entries 0 to"):
        alive_groups(step_trace(1), index)


def test_modules_hold_all_that_is_alive_by_kind():
    trace = step_trace(1)
    peak = timeline(trace).peak
    held = held_by_module(trace, peak)
    assert held["fc", "param"] == 64
    assert held["<optimizer>", "temp"] == 64  # inside of an op
    assert held.total() == trace.peak_bytes()


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        ([()], ""),
        ([("h", "3", "fc")], "h.3.fc"),
        ([("h", "3"), ("h", "4"), ("h", "5")], "h.3-5"),
        ([("h", "2"), ("h", "4"), ("h", "6")], "h.2,4,6"),
        ([("h", str(i)) for i in (0, 2, 3, 4, 9)], "h.*"),
        ([("h", "9"), ("h", "10")], "h.9-10"),
        ([("h", "0", "e", "1"), ("h", "0", "e", "2"), ("h", "1", "e", "1")], "h.0-1.e.1-2"),
    ],
)
def test_paths_fold_into_ranges(paths, text):
    assert fold_paths(paths) == text
