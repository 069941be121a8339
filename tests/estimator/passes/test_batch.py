"""Accumulation: gradients outlive a micro-batch, and later ones are added to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.batch import _updates_again, apply
from dnnmem.estimator.plan import Batch, Mesh, Plan, Sharding
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from tests.estimator.passes.steps import gpt


def grads(trace):
    touched = {i for op in trace.ops for i in op.writes}
    return {i: s.nbytes for i, s in trace.storages.items() if s.kind is Kind.GRAD and i in touched}


def test_gradients_stay_and_are_added_to():
    # GIVEN gradients that are freed after each update
    trace = gpt(3)
    found = apply(trace, Plan(batch=Batch(accumulation=4)))
    found.check()
    # THEN they live on, and each has an addition in place
    assert found.pinned - trace.pinned == grads(trace).keys()
    added = [op for op in found.ops if op.name == "aten.add_.Tensor" and op.writes[0] in grads(trace)]
    assert len(added) == len(grads(trace))
    assert sum(op.moved_bytes for op in added) == 3 * sum(grads(trace).values())


def test_parts_of_gradients_need_no_whole_ones_between():
    plan = Plan(batch=Batch(accumulation=4), mesh=Mesh(dp_shard=2), sharding=Sharding(strategy="zero3"))
    found = apply(gpt(3), plan)
    assert len(found.ops) == len(gpt(3).ops) + 1  # the loss counts a part
    assert found.pinned - gpt(3).pinned == grads(gpt(3)).keys()


def test_another_micro_batch_is_refused():
    assert apply(gpt(3), Plan(batch=Batch(micro_batch=2))) is gpt(3)
    with pytest.raises(UnsupportedError, match="micro_batch is 8, but the step was recorded with 2"):
        apply(gpt(3), Plan(batch=Batch(micro_batch=8)))


def test_zero_grad_before_the_backward_pass_is_for_the_first_micro_batch():
    # GIVEN a loop that lets go of its gradients between the passes, so that a step ends with them
    held = {
        0: Storage(id=0, nbytes=4096, kind=Kind.ACTIVATION, saved=True),
        1: Storage(id=1, nbytes=4096, kind=Kind.GRAD, dtype="float32"),
        2: Storage(id=2, nbytes=4096, kind=Kind.PARAM, dtype="float32"),
    }
    ops = (
        Op(name="f", reads=(2,), writes=(0,), events=(Event(4096, 0, 0), Event(-4096, 0, 1))),
        Op(
            name="b", phase=Phase.BACKWARD, reads=(0,), writes=(1,), events=(Event(4096, 0, 1), Event(-4096, 0, 0)),
        ),
        Op(name="update", phase=Phase.STEP, reads=(1, 2), writes=(2,)),
    )  # fmt: skip
    trace = Trace(ops=ops, storages=held, pinned=frozenset({1, 2}))
    trace.check()
    # WHEN two micro-batches make a step  THEN the second adds to gradients that live all the time
    found = apply(trace, Plan(batch=Batch(accumulation=2)))
    found.check()
    assert not [e for op in found.ops for e in op.events if e.storage == 1]
    assert [op.writes for op in found.ops if op.name == "aten.add_.Tensor"] == [(1,)]


def test_a_step_of_several_updates_is_refused():
    # GIVEN a step as a GAN's: passes and an update, and again  THEN nobody knows which passes make one update
    trace = gpt(3)
    with pytest.raises(UnsupportedError, match="updates more than once"):
        apply(replace(trace, ops=trace.ops * 2), Plan(batch=Batch(accumulation=2)))
    # AND an update in the backward pass, or one of several parts, is one
    parted = [
        replace(op, phase=Phase.STEP) if k % 2 else op for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD
    ]
    assert not _updates_again((*trace.ops, *parted))


def test_logits_that_the_program_drops_are_gone_when_the_backward_pass_begins():
    # GIVEN a loop whose variable holds the logits until the update is over
    trace = gpt(3)
    held = [i for i, s in trace.storages.items() if s.shape == (2, 32, 320) and s.kind is Kind.ACTIVATION]
    found = apply(trace, Plan(batch=Batch(keep_output=False)))
    found.check()
    # THEN they go with the last op of the forward pass or the last that uses them, and no op is lost
    freed = [op.phase for op in found.ops for e in op.events if e.nbytes < 0 and e.storage in held]
    assert Phase.STEP not in freed
    assert found.peak_bytes() < trace.peak_bytes()
    assert [op.name for op in found.ops] == [op.name for op in trace.ops]
