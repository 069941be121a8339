"""A rewritten step is replayed as a process runs it: states come with the first update, workspaces with products."""

from __future__ import annotations

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
