"""What holds for every trace: the rules `check` keeps, bytes that add up, files that give back what they got."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dnnmem.estimator.build import build_profile
from dnnmem.estimator.errors import TraceError
from dnnmem.estimator.layers import layers, saved_storages
from dnnmem.estimator.timeline import alive_at, timeline
from dnnmem.estimator.trace import Kind, Op, Phase, Trace
from dnnmem.estimator.trace_file import load_trace, save_trace
from tests.strategies import measurements, traces


@dataclass(frozen=True)
class Gpu:
    """What a profile asks of a device."""

    name: str = "h100"
    usable_bytes: int = 2**24
    context_bytes: int | None = 2**20


def _with_events(trace: Trace, at: int, events: list) -> Trace:
    ops = list(trace.ops)
    ops[at] = replace(ops[at], events=tuple(events))
    return replace(trace, ops=tuple(ops))


def _some_event(data: st.DataObject, trace: Trace, *, frees: bool) -> tuple[int, int]:
    """Op and place of an allocation, or of a free."""
    found = [
        (k, j) for k, op in enumerate(trace.ops) for j, event in enumerate(op.events) if (event.nbytes < 0) is frees
    ]
    assume(found)
    return data.draw(st.sampled_from(found))


@given(traces())
def test_a_valid_trace_is_accepted(trace):
    trace.check()


@given(traces(), st.data())
def test_a_block_is_freed_once(trace, data):
    # GIVEN a trace  WHEN one free is repeated
    at, j = _some_event(data, trace, frees=True)
    events = list(trace.ops[at].events)
    broken = _with_events(trace, at, [*events[: j + 1], events[j], *events[j + 1 :]])
    # THEN check names the op
    with pytest.raises(TraceError, match=rf"op {at} .*frees"):
        broken.check()


@given(traces(), st.data())
def test_a_block_is_freed_at_all(trace, data):
    # GIVEN a trace  WHEN one free is left out
    at, j = _some_event(data, trace, frees=True)
    events = list(trace.ops[at].events)
    with pytest.raises(TraceError):
        _with_events(trace, at, events[:j] + events[j + 1 :]).check()


@given(traces(), st.data())
def test_a_block_is_allocated_first(trace, data):
    at, j = _some_event(data, trace, frees=False)
    events = list(trace.ops[at].events)
    with pytest.raises(TraceError):
        _with_events(trace, at, events[:j] + events[j + 1 :]).check()


@given(traces(), st.data())
def test_sizes_agree(trace, data):
    at, j = _some_event(data, trace, frees=data.draw(st.booleans()))
    events = list(trace.ops[at].events)
    events[j] = events[j]._replace(nbytes=events[j].nbytes + (1 if events[j].nbytes > 0 else -1))
    with pytest.raises(TraceError):
        _with_events(trace, at, events).check()


@given(traces(), st.data())
def test_nothing_is_read_after_its_end(trace, data):
    # GIVEN a trace with storages that do not survive it  WHEN an op at the end reads one
    gone = [i for i, storage in trace.storages.items() if i not in trace.pinned and storage.nbytes]
    assume(gone)
    late = Op(name="late", phase=Phase.STEP, reads=(data.draw(st.sampled_from(gone)),))
    # THEN check names both
    with pytest.raises(TraceError, match=rf"late.* reads storage {late.reads[0]}"):
        replace(trace, ops=(*trace.ops, late)).check()


@given(traces())
def test_kinds_sum_to_allocated_and_the_step_ends_as_it_began(trace):
    curve = timeline(trace)
    assert (sum(curve.kinds.values()) == curve.allocated).all()
    assert curve.allocated[0] == curve.allocated[-1] == trace.pinned_bytes()
    assert curve.allocated[curve.peak] == curve.allocated.max() == trace.peak_bytes()
    assert (curve.allocated[: curve.peak] < curve.allocated[curve.peak]).all()
    assert all((line >= 0).all() for line in curve.kinds.values())


@given(traces(), st.data())
def test_what_is_alive_sums_to_the_curve(trace, data):
    curve = timeline(trace)
    index = data.draw(st.integers(0, len(curve.allocated) - 1))
    live = alive_at(trace, index)
    assert sum(live.values()) == curve.allocated[index]
    for kind in Kind:
        of_kind = (n for i, n in live.items() if (trace.storages[i].kind if i >= 0 else Kind.TEMP) is kind)
        assert sum(of_kind) == curve.kinds[kind][index]


@given(traces())
def test_layers_sum_to_the_step(trace):
    rows = layers(trace)
    assert sum(row.peak_bytes for row in rows) == trace.peak_bytes()
    assert sum(row.forward_flops + row.backward_flops for row in rows) == sum(op.flops for op in trace.ops)
    for kind, column in ((Kind.PARAM, "param_bytes"), (Kind.OPTIMIZER, "optimizer_bytes")):
        assert sum(getattr(row, column) for row in rows) == sum(
            s.nbytes for s in trace.storages.values() if s.kind is kind
        )
    times = [t for row in rows for t in (row.forward_seconds, row.backward_seconds) if t is not None]
    assert sum(times) == pytest.approx(sum(op.seconds or 0 for op in trace.ops))
    assert len({row.module for row in rows}) == len(rows)


@given(traces())
def test_activations_sum_to_the_most_that_is_saved_at_once(trace):
    # GIVEN the storages that are saved  WHEN the moments of forward are walked one by one
    saved = {s.id for s in saved_storages(trace)}
    phases = [Phase.FORWARD, *(trace.ops[index].phase for index, _ in trace.events())]
    forward = [k for k, phase in enumerate(phases) if phase is Phase.FORWARD]
    most = max(sum(n for i, n in alive_at(trace, k).items() if i in saved) for k in forward)
    # THEN the rows sum to the largest
    assert sum(row.activation_bytes for row in layers(trace)) == most


@given(traces())
def test_a_layers_temporaries_are_at_most_all_temporaries(trace):
    most = int(timeline(trace).kinds[Kind.TEMP].max())
    assert all(row.temp_bytes <= most for row in layers(trace))


@given(traces(), measurements)
def test_a_saved_trace_comes_back_the_same(tmp_path_factory, trace, measurement):
    path = tmp_path_factory.mktemp("trace") / "step.trace.json.gz"
    save_trace(trace, measurement, path)
    assert load_trace(path) == (trace, measurement)
    assert [p.name for p in Path(path.parent).iterdir()] == [path.name]


@given(traces(), measurements, st.none() | st.builds(Gpu))
def test_parts_sum_to_the_total(trace, measurement, gpu):
    profile = build_profile(trace, measurement, gpu)
    known = {part: nbytes for part, nbytes in profile.parts.items() if nbytes is not None}
    assert sum(known.values()) == profile.total_bytes
    assert min(known.values()) >= 0
    tensors = sum(nbytes for part, nbytes in known.items() if part not in ("fragmentation", "context"))
    if measurement.allocated_bytes is not None:
        assert profile.peak.allocated_bytes == measurement.allocated_bytes
        assert tensors == measurement.allocated_bytes
    else:
        assert tensors == trace.peak_bytes()
        rounding = profile.peak.allocated_bytes - tensors  # the allocator's, counted in fragmentation
        assert 0 <= rounding <= (known.get("fragmentation") or 0)
    assert profile.fits is (None if gpu is None else profile.total_bytes <= gpu.usable_bytes)
    assert sum(line.nbytes for line in profile.alive) <= trace.peak_bytes()
