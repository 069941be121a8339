"""Tensors that share a block: each has its own gradient, states and master weights, and the block goes with the last.

The weights of a cuDNN layer, and a matrix: block (weight (3, 2), bias (3)), gradients in one block too.
"""

from __future__ import annotations

import pytest

from dnnmem.estimator.hidden import hidden_of
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Optimizer, Plan, Precision
from dnnmem.estimator.trace import Event, Kind, Op, Part, Phase, Storage, Trace

PARTS = Part(("rnn",), "weight", (3, 2)), Part(("rnn",), "bias", (3,))


def step(dtype="float32"):
    """A step of SGD over both, whose move to the GPU is in its set-up."""
    size = {"float32": 4, "bfloat16": 2}[dtype]

    def made(i, count, kind, module, shape, parts=()):
        return Storage(
            id=i, nbytes=count * size, kind=kind, shape=shape, dtype=dtype, module=(module,), name="weight", parts=parts
        )  # fmt: skip

    storages = [
        made(0, 9, Kind.PARAM, "rnn", (3, 2), PARTS), made(1, 4, Kind.PARAM, "head", (2, 2)),
        made(2, 9, Kind.GRAD, "rnn", (3, 2), PARTS[::-1]), made(3, 4, Kind.GRAD, "head", (2, 2)),
        made(4, 6, Kind.BUFFER, "", ()), made(5, 3, Kind.BUFFER, "", ()),
    ]  # fmt: skip
    by_id = {s.id: s for s in storages}
    event = {i: Event(s.nbytes, 0, i) for i, s in by_id.items()}
    gone = {i: Event(-s.nbytes, 0, i) for i, s in by_id.items()}
    ops = (
        Op(name="head", phase=Phase.BACKWARD, reads=(1,), writes=(3,), events=(event[3],)),
        Op(name="rnn", phase=Phase.BACKWARD, reads=(0,), writes=(2,), events=(event[2],)),
        Op(
            name="aten._foreach_add_.List", module=("<optimizer>",), phase=Phase.STEP, reads=(0, 1, 2, 3),
            writes=(0, 1), events=(gone[2], gone[3]),
        ),
    )  # fmt: skip
    setup = (event[4], event[5], event[0], gone[4], gone[5], event[1])
    trace = Trace(ops=ops, storages=by_id, setup=setup, pinned=frozenset({0, 1}))
    trace.check()
    return trace


def states(trace):
    return {(s.module[0], s.name): s.nbytes for i, s in trace.storages.items() if s.kind is Kind.OPTIMIZER}


def test_each_has_states_of_its_own():
    [found] = rewrite(step(), Plan(optimizer=Optimizer(name="momentum")))
    found.check()
    assert states(found) == {
        ("rnn", "weight.momentum_buffer"): 24, ("rnn", "bias.momentum_buffer"): 12,
        ("head", "weight.momentum_buffer"): 16,
    }  # fmt: skip
    # AND ops name the block once, and move what is in it once
    last = found.ops[-1]
    assert last.reads[:1] == (0,)
    assert last.reads.count(0) == last.writes.count(0) == 1
    assert last.moved_bytes == 3 * (24 + 12 + 16)


def test_what_the_move_left_stays_in_the_set_up():
    [found] = rewrite(step(), Plan(optimizer=Optimizer(name="momentum")))
    assert [(e.nbytes > 0, e.storage) for e in found.setup] == [
        (True, 4), (True, 5), (True, 0), (False, 4), (False, 5), (True, 1),
    ]  # fmt: skip


def test_the_block_of_gradients_goes_with_the_last_of_them():
    # GIVEN updates in the backward pass  THEN the tensors are updated in the order in which their gradients came
    [found] = rewrite(step(), Plan(optimizer=Optimizer(in_backward=True)))
    found.check()
    updates = [op for op in found.ops if 0 in op.writes]
    assert [op.moved_bytes for op in updates] == [3 * 12, 3 * 24]
    assert [op.frees for op in updates] == [(), (2,)]


@pytest.mark.parametrize("name", [None, "momentum"])
def test_each_has_master_weights_of_its_own(name):
    plan = Plan(precision=Precision(param="float32"), optimizer=Optimizer(name=name))
    [found] = rewrite(step("bfloat16"), plan)
    found.check()
    masters = {key: nbytes for key, nbytes in states(found).items() if key[1].endswith("master")}
    assert masters == {("rnn", "weight.master"): 24, ("rnn", "bias.master"): 12, ("head", "weight.master"): 16}
    # AND each gradient is cast by itself, in the order of the parameters
    casts = [op for op in found.ops if "_to_copy" in op.name]
    assert [(op.reads, [e.nbytes for e in op.events]) for op in casts] == [
        ((2,), [24]), ((2,), [12, -18]), ((3,), [16, -8]),
    ]  # fmt: skip


def test_a_matrix_in_a_block_is_hidden():
    assert hidden_of(step()) == {(("rnn",), "weight")}


def test_a_layer_is_updated_when_its_bias_has_its_gradient_too():
    # GIVEN a linear layer, whose node makes the weight's gradient, and then the bias's with a temporary
    def made(i, kind, name, nbytes):
        return Storage(id=i, nbytes=nbytes, kind=kind, shape=(nbytes // 4,), dtype="float32", module=("fc",), name=name)

    storages = [
        made(0, Kind.PARAM, "weight", 16), made(1, Kind.PARAM, "bias", 8),
        made(2, Kind.GRAD, "weight", 16), made(3, Kind.GRAD, "bias", 8), made(4, Kind.TEMP, "", 8),
    ]  # fmt: skip

    def op(name, reads, writes, *events):
        return Op(name=name, module=("fc",), phase=Phase.BACKWARD, reads=reads, writes=writes, events=events)

    ops = (
        op("aten.mul.Tensor", (), (4,), Event(8, 0, 4)),
        op("aten.mm.default", (4,), (2,), Event(16, 0, 2)),
        op("aten.sum.dim_IntList", (4,), (3,), Event(8, 0, 3), Event(-8, 0, 4)),
        Op(
            name="aten._foreach_add_.List", module=("<optimizer>",), phase=Phase.STEP, reads=(0, 1, 2, 3),
            writes=(0, 1), events=(Event(-16, 0, 2), Event(-8, 0, 3)),
        ),
    )  # fmt: skip
    trace = Trace(ops=ops, storages={s.id: s for s in storages}, pinned=frozenset({0, 1}))
    [found] = rewrite(trace, Plan(optimizer=Optimizer(in_backward=True)))
    found.check()
    # THEN both are updated behind that, the bias first
    assert [op.writes for op in found.ops] == [(4,), (2,), (3,), (1,), (0,)]
    assert [op.frees for op in found.ops[2:]] == [(4,), (3,), (2,)]
