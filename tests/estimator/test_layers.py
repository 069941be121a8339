from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.layers import layers, saved_storages
from dnnmem.estimator.trace import Event, Kind, Module, Op, Phase, Storage, Trace
from tests.strategies import step_trace


def _rows(trace: Trace) -> dict:
    return {row.module: row for row in layers(trace)}


def test_rows_come_in_definition_order_then_pseudo_modules():
    # GIVEN modules (root), fc, act and an idle one  WHEN rows are made
    rows = layers(step_trace(1))
    # THEN the idle one is left out; the root holds the input at the peak
    assert [(row.module, row.type) for row in rows] == [
        ("", "Net"),
        ("fc", "Linear"),
        ("act", "ReLU"),
        ("<loss>", ""),
        ("<optimizer>", ""),
    ]
    assert rows[0].source == "model.py:1"


def test_the_columns_of_the_step_made_by_hand():
    rows = _rows(step_trace(1))
    fc, act, loss, optimizer = rows["fc"], rows["act"], rows["<loss>"], rows["<optimizer>"]
    assert (fc.param_bytes, fc.grad_bytes, fc.optimizer_bytes, fc.activation_bytes) == (64, 64, 64, 8)
    assert (fc.temp_bytes, fc.forward_flops, fc.backward_flops) == (32, 64, 64)
    assert (act.activation_bytes, act.temp_bytes, loss.temp_bytes, optimizer.temp_bytes) == (8, 8, 4, 64)
    assert {name: row.peak_bytes for name, row in rows.items()} == {
        "": 16, "fc": 192, "act": 0, "<loss>": 0, "<optimizer>": 64,
    }  # fmt: skip


def test_seconds_go_by_phase_and_are_none_where_none_was_taken():
    rows = _rows(step_trace(1))
    assert rows["fc"].forward_seconds == rows["fc"].backward_seconds == pytest.approx(0.003)
    assert rows["<optimizer>"].forward_seconds == pytest.approx(0.003)
    assert rows["<optimizer>"].backward_seconds is None
    assert rows[""].forward_seconds is None
    assert {row.forward_seconds for row in layers(step_trace(1, seconds=False))} == {None}


def test_a_shared_temporary_belongs_to_the_op_that_allocated_it():
    # GIVEN module a's temporary, alive while b makes two and frees all three
    temps = {i: Storage(id=i, nbytes=10, kind=Kind.TEMP, module=("elsewhere",)) for i in range(3)}
    first = Op(name="mm", module=("a",), events=(Event(10, 0, 0),))
    events = (Event(10, 0, 1), Event(-10, 0, 0), Event(10, 0, 2), Event(-10, 0, 1), Event(-10, 0, 2))
    second = Op(name="mm", module=("b",), events=events)
    # WHEN rows are made  THEN a held 10 at once and b 20
    rows = _rows(Trace(ops=(first, second), storages=temps))
    assert (rows["a"].temp_bytes, rows["b"].temp_bytes) == (10, 20)


def test_activations_are_those_of_one_moment():
    # GIVEN a's 10 saved bytes freed before b's 8 are made
    made = {
        0: Storage(id=0, nbytes=10, kind=Kind.ACTIVATION, module=("a",), saved=True),
        1: Storage(id=1, nbytes=8, kind=Kind.ACTIVATION, module=("b",), saved=True),
    }
    events = (Event(10, 0, 0), Event(-10, 0, 0), Event(8, 0, 1), Event(-8, 0, 1))
    rows = _rows(Trace(ops=(Op(name="mm", module=("a",), events=events),), storages=made))
    # THEN only a's are there when most is saved
    assert rows["a"].activation_bytes == 10
    assert "b" not in rows


def test_saved_parameters_and_inputs_are_no_activations():
    trace = step_trace(1)
    marked = {i: replace(s, saved=True) for i, s in trace.storages.items()}
    found = {s.kind for s in saved_storages(replace(trace, storages=marked))}
    assert found == {Kind.ACTIVATION, Kind.TEMP}


def test_a_gradient_made_twice_counts_once():
    # GIVEN a gradient that accumulation replaced by another of the same name
    grads = {i: Storage(id=i, nbytes=64, kind=Kind.GRAD, module=("fc",), name="weight") for i in range(2)}
    grads[2] = Storage(id=2, nbytes=4, kind=Kind.GRAD, module=("fc",), name="bias")
    rows = _rows(Trace(ops=(), storages=grads, pinned=frozenset(grads)))
    assert rows["fc"].grad_bytes == 68


def test_a_pinned_workspace_is_no_modules_temporary():
    kept = Storage(id=0, nbytes=100, kind=Kind.TEMP, name="workspace", module=("fc",))
    again = Op(name="mm", module=("fc",), phase=Phase.STEP, events=(Event(-100, 0, 0), Event(100, 0, 0)))
    trace = Trace(ops=(Op(name="mm", module=("fc",)),), storages={0: kept}, pinned=frozenset({0}))
    assert _rows(trace)["fc"].temp_bytes == 0
    assert _rows(replace(trace, ops=(again,)))["fc"].temp_bytes == 100


def test_a_module_with_nothing_but_an_op_or_a_parameter_has_its_row():
    modules = tuple(Module(path=(name,), type="Block") for name in "abc")
    empty = Storage(id=0, nbytes=0, kind=Kind.PARAM, module=("b",), name="weight")
    op = Op(name="view", module=("c",))
    trace = Trace(ops=(op,), storages={0: empty}, pinned=frozenset({0}), modules=modules)
    assert [row.module for row in layers(trace)] == ["b", "c"]
