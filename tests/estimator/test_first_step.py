"""A rewritten step is replayed as a process runs it: states come with the first update, workspaces with products."""

from __future__ import annotations

from dataclasses import replace

from dnnmem.estimator.first_step import first_step, remade
from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace

MIB = 2**20


def test_states_take_what_the_first_backward_pass_left():
    # GIVEN an activation of 64 MiB that is gone when the first update makes states of 64 MiB
    held = {
        0: Storage(id=0, nbytes=64 * MIB, kind=Kind.ACTIVATION),
        1: Storage(id=1, nbytes=64 * MIB, kind=Kind.OPTIMIZER),
    }
    ops = (
        Op(name="f", writes=(0,), events=(Event(64 * MIB, 0, 0), Event(-64 * MIB, 0, 0))),
        Op(name="update", phase=Phase.STEP, reads=(1,), writes=(1,)),
    )
    trace = Trace(ops=ops, storages=held, pinned=frozenset({1}))
    # WHEN the states are not in the set-up THEN both steps need 128 MiB, as with states from the start
    assert replay_trace(trace, steps=1).peak_reserved_bytes == 128 * MIB
    assert replay_trace(trace, steps=2).peak_reserved_bytes == 128 * MIB
    # AND the states lie where the activation was
    smaller = Trace(ops=(ops[1],), storages=held, pinned=frozenset({1}))
    assert replay_trace(smaller).peak_reserved_bytes == 64 * MIB


def test_a_workspace_comes_with_the_first_product():
    # GIVEN a workspace that lives on, and an activation before the first product
    held = {i: Storage(id=i, nbytes=32 * MIB, kind=Kind.TEMP) for i in (0, 1)}
    before = Op(name="f", writes=(0,), events=(Event(32 * MIB, 0, 0), Event(-32 * MIB, 0, 0)))
    trace = Trace(ops=(before, Op(name="mm", flops=8)), storages=held, pinned=frozenset({1}))
    # WHEN it is made THEN it takes the room that the activation had, which needs another from the second step on
    assert replay_trace(trace, steps=2).peak_reserved_bytes == 64 * MIB
    assert replay_trace(trace, steps=2).reserved_bytes == 64 * MIB


def test_what_a_module_keeps_is_made_when_it_is_used_first():
    # GIVEN states of dropout, which an op of the first step made, and an activation that is gone before
    held = {
        0: Storage(id=0, nbytes=32 * MIB, kind=Kind.ACTIVATION),
        1: Storage(id=1, nbytes=32 * MIB, kind=Kind.BUFFER, name="aten.empty.memory_format"),
    }
    before = Op(name="f", writes=(0,), events=(Event(32 * MIB, 0, 0), Event(-32 * MIB, 0, 0)))
    trace = Trace(ops=(before, Op(name="lstm", reads=(1,))), storages=held, pinned=frozenset({1}))
    # THEN they take its room, and the second step needs other
    assert [e.storage for e in first_step(trace, [held[1]])] == [0, 0, 1]
    assert replay_trace(trace, steps=2).peak_reserved_bytes == 64 * MIB
    # AND a pass leaves them out of the set-up, unless the step makes them itself
    assert Draft(trace).finish().setup == ()
    again = replace(trace, ops=(Op(name="f", reads=(1,), events=(Event(-32 * MIB, 0, 1), Event(32 * MIB, 0, 1))),))
    assert [e.storage for e in Draft(again).finish().setup] == [1]


def test_moments_of_16_bits_are_made_when_they_are_rounded_to():
    # GIVEN an update that widens a moment, and rounds it
    held = {
        0: Storage(id=0, nbytes=8, kind=Kind.PARAM, name="w", dtype="float32"),
        1: Storage(id=1, nbytes=4, kind=Kind.OPTIMIZER, name="w.exp_avg", dtype="bfloat16"),
        2: Storage(id=2, nbytes=8, kind=Kind.TEMP, dtype="float32"),
    }
    widen = Op(name="aten._to_copy.default", reads=(1,), writes=(2,), events=(Event(8, 0, 2),))
    step = Op(name="aten.addcdiv_.default", reads=(0, 2), writes=(0,))
    narrow = Op(name="aten.copy_.default", reads=(1, 2), writes=(1,), events=(Event(-8, 0, 2),))
    ops = tuple(replace(op, module=("<optimizer>",), phase=Phase.STEP) for op in (widen, step, narrow))
    trace = Trace(ops=ops, storages=held, pinned=frozenset({0, 1}))
    # THEN the first step makes it in 16 bits only then: the optimizer began it in float32
    assert [(e.nbytes, e.storage) for e in first_step(trace, [held[1]])] == [(8, 2), (4, 1), (-8, 2)]


def test_gradients_that_each_step_makes_anew_are_not_there_in_the_first():
    # GIVEN `zero_grad` between the passes: the step finds a gradient of 64 MiB, lets go of it and makes it again
    held = {
        0: Storage(id=0, nbytes=64 * MIB, kind=Kind.ACTIVATION),
        1: Storage(id=1, nbytes=64 * MIB, kind=Kind.GRAD),
    }
    ops = (
        Op(name="f", writes=(0,), events=(Event(64 * MIB, 0, 0), Event(-64 * MIB, 0, 1))),
        Op(name="b", phase=Phase.BACKWARD, writes=(1,), events=(Event(-64 * MIB, 0, 0), Event(64 * MIB, 0, 1))),
    )
    trace = Trace(ops=ops, storages=held, pinned=frozenset({1}))
    # THEN the first step makes it where the activation was, and no set-up of a rewritten trace has it
    assert [(e.nbytes > 0, e.storage) for e in first_step(trace, [held[1]])] == [(True, 0), (False, 0), (True, 1)]
    assert remade(ops, held.values()) == {1}
    assert Draft(trace).finish().setup == ()
    # AND a gradient that is made first, and let go of when the step ends, is none of them
    assert not remade(ops[::-1], held.values())


def test_the_second_step_has_the_segments_that_the_first_one_left():
    # GIVEN a gradient of 30 MiB that is let go of before an activation of 64 MiB is made
    held = {
        0: Storage(id=0, nbytes=64 * MIB, kind=Kind.ACTIVATION),
        1: Storage(id=1, nbytes=30 * MIB, kind=Kind.GRAD),
    }
    ops = (
        Op(name="f", writes=(0,), events=(Event(-30 * MIB, 0, 1), Event(64 * MIB, 0, 0), Event(-64 * MIB, 0, 0))),
        Op(name="b", phase=Phase.BACKWARD, writes=(1,), events=(Event(30 * MIB, 0, 1),)),
    )
    # THEN it lies where the activation of the first step was, from which no second one can be served
    found = replay_trace(Trace(ops=ops, storages=held, pinned=frozenset({1})))
    assert (found.peak_reserved_bytes, found.segment_count) == (64 * MIB, 1)
