"""What blocks save is on the host between their forward and backward passes; the last block's stays."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.offload import apply
from dnnmem.estimator.passes.offload_copies import IN, OUT
from dnnmem.estimator.passes.remat import apply as remat
from dnnmem.estimator.plan import Offload, Plan, Precision, Remat
from dnnmem.estimator.trace import Lane, Phase
from tests.estimator.passes.steps import LLAMA, gpt, passes_peak
from tests.profilers.recorded import zoo_fake

ALL = Plan(offload=Offload(activations="all", min_bytes=1))


def offloaded(trace, plan=ALL):
    found = apply(trace, plan)
    found.check()
    return found


def copies(trace, name):
    return [op for op in trace.ops if op.name == name]


def test_what_goes_out_comes_back():
    # GIVEN a step of four blocks
    found = offloaded(gpt(4, batch=16))
    out, back = copies(found, OUT), copies(found, IN)
    # THEN three of them send and fetch the same bytes, on lanes of their own
    assert sorted(op.moved_bytes for op in out) == sorted(op.moved_bytes for op in back)
    assert {op.module[1] for op in out} == {"0", "1", "2"}
    assert ({op.lane for op in out}, {op.lane for op in back}) == ({Lane.TO_HOST}, {Lane.TO_DEVICE})
    # AND less is alive at the peak
    assert passes_peak(found) < passes_peak(gpt(4, batch=16))


def test_small_tensors_stay():
    trace = gpt(4)
    most = max(op.moved_bytes for op in copies(offloaded(trace), OUT))
    found = offloaded(trace, Plan(offload=Offload(activations="all", min_bytes=most)))
    assert {op.moved_bytes for op in copies(found, OUT)} == {most}


def test_every_second_block():
    found = offloaded(gpt(4), Plan(offload=Offload(activations="every", every=2, min_bytes=1)))
    assert {op.module[1] for op in copies(found, OUT)} == {"1"}


def test_only_inputs_travel_where_blocks_run_again():
    found = offloaded(remat(gpt(4, batch=16), Plan(remat=Remat(policy="full"))))
    assert [op.moved_bytes for op in copies(found, OUT)] == 3 * [16 * 32 * 64 * 4]


def test_operands_come_back_in_the_order_in_which_their_op_saved_them():
    # GIVEN autocast, which casts a layer's weight before the layer's input
    plan = Plan(precision=Precision(compute="bf16_amp"), offload=ALL.offload)
    [found] = rewrite(gpt(**LLAMA), plan)
    back = [op for op in copies(found, IN) if op.module == ("blocks", "0", "attention", "q")]
    # THEN the product's first operand, the input, is the first to come back all the same
    assert [len(found.storages[i].shape) for op in back for i in op.writes] == [3, 2]


def test_blocks_are_named():
    found = offloaded(gpt(4), Plan(offload=Offload(activations="blocks", blocks="0,2", min_bytes=1)))
    assert {op.module[1] for op in copies(found, OUT)} == {"0", "2"}


def test_blocks_come_back_while_the_one_behind_them_runs():
    # GIVEN block 0 on the host  THEN it is fetched when the backward pass of block 1 begins
    found = offloaded(gpt(4), Plan(offload=Offload(activations="blocks", blocks="0", min_bytes=1)))
    last = max(k for k, op in enumerate(found.ops) if op.name == IN)
    assert (found.ops[last + 1].module[1], found.ops[last + 1].phase) == ("1", Phase.BACKWARD)


def test_what_is_kept_what_is_computed_again_and_what_travels():
    # GIVEN block 0 on the host, 1 and 2 computed again as one from an input on the host, and 3 kept
    plan = Plan(
        remat=Remat(policy="segments", segments="1-2"), offload=Offload(activations="blocks", blocks="0-1", min_bytes=1)
    )
    found = offloaded(remat(gpt(4, batch=16), plan), plan)
    assert sum(op.module[1] == "1" for op in copies(found, OUT)) == 1
    assert {op.module[1] for op in copies(found, OUT)} == {"0", "1"}


def test_ops_that_are_kept_stay():
    plan = Plan(remat=Remat(policy="selective"), offload=Offload(activations="all", min_bytes=1))
    found = offloaded(remat(gpt(4, batch=16), plan), plan)
    assert [op.moved_bytes for op in copies(found, OUT)] == 3 * [16 * 32 * 64 * 4]


@pytest.mark.parametrize("settings", [{"activations": "every", "every": 3}, {"activations": "blocks", "blocks": "2"}])
def test_a_step_of_which_nothing_travels_is_refused(settings):
    with pytest.raises(UnsupportedError, match="sends nothing of a model with 3 blocks"):
        apply(gpt(3), Plan(offload=Offload(**settings)))


def test_blocks_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match=r"offload\.blocks is '4'; the model has 3 blocks"):
        apply(gpt(3), Plan(offload=Offload(activations="blocks", blocks="4")))


def test_inputs_of_convolutions_travel():
    # GIVEN a residual network
    trace = zoo_fake("resnet").trace
    found = offloaded(trace, Plan(offload=Offload(activations="conv", min_bytes=1)))
    convs = [op for op in trace.ops if op.phase is Phase.FORWARD and "convolution" in op.name]
    # THEN what is computed goes once, the batch stays, and weights do
    inputs = {op.reads[0] for op in convs} - trace.pinned
    assert {op.reads[0] for op in copies(found, OUT)} == inputs
    assert len(copies(found, OUT)) == len(inputs) == len(copies(found, IN))
    assert passes_peak(found) < passes_peak(trace)


def test_a_step_without_convolutions_is_refused():
    with pytest.raises(UnsupportedError, match="finds no convolution"):
        apply(gpt(3), Plan(offload=Offload(activations="conv", min_bytes=1)))
