"""What stages hold of messages, as PyTorch's do; backward passes in two parts; cuts."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.backward_parts import backward_parts, weight_ops
from dnnmem.estimator.passes.pipeline import split
from dnnmem.estimator.passes.pipeline_buffers import SEND, received, staying
from dnnmem.estimator.plan import Batch, Mesh, Pipeline, Plan, Remat, check
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.stage_memory import stage_step, worst_stage
from dnnmem.estimator.trace import Kind, Phase
from tests.estimator.passes.steps import LLAMA, gpt
from tests.estimator.test_stage_memory import DEVICE

STREAM = 2 * 32 * 64 * 4


def planned(schedule, chunks=1, m=8, pp=2, **arguments):
    return Plan(
        mesh=Mesh(pp=pp), batch=Batch(accumulation=m), pipeline=Pipeline(schedule=schedule, chunks=chunks, **arguments),
        remat=Remat(policy="full" if schedule == "varuna" else "none"),
    )  # fmt: skip


def test_what_is_received_has_places_and_what_is_sent_stays():
    first, last = rewrite(gpt(4, **LLAMA), planned("1f1b"))
    # GIVEN 1F1B  THEN gradients come to the first chunk, activations to the last, where nothing frees them
    for chunk in (first, last):
        chunk.check()
        [place] = received(chunk)
        assert chunk.storages[place].nbytes == STREAM
        assert not staying(chunk)
    # AND what the first sends is freed when its backward pass is over
    [send] = [op for op in first.ops if op.name == SEND]
    [freed] = [op for op in first.ops for e in op.events if e.storage in send.reads and e.nbytes < 0]
    backward = [op for op in first.ops if op.phase is Phase.BACKWARD and op.name != "aten.add_.Tensor"]
    assert freed is backward[-1]
    # AND GPipe holds it until the step is over
    assert staying(rewrite(gpt(4, **LLAMA), planned("gpipe"))[0]) == {*send.reads}
    # AND stages that make room as messages come, as Megatron's, hold none
    assert not received(rewrite(gpt(4, **LLAMA), planned("1f1b", buffers=False))[0])


def test_places_are_as_many_as_micro_batches():
    peaks = []
    for m in (8, 16):
        plan = planned("1f1b", m=m)
        parts = rewrite(gpt(4, **LLAMA), plan)
        step = stage_step(parts, SCHEDULES["1f1b"](2, m, 1), 1, m)
        step.check()
        peaks.append(step.peak_bytes())
    assert peaks[1] - peaks[0] == 8 * STREAM


def test_both_parts_of_a_backward_pass_do_all_of_it():
    for chunk in rewrite(gpt(4, **LLAMA), planned("zb_h1")):
        inputs, weights = backward_parts(chunk)
        whole = [op.name for op in chunk.ops if op.phase is Phase.BACKWARD]
        # THEN each op is in one of them, a norm's that is needed twice in both
        norms = "norm_backward" if inputs else ""
        once = [name for name in whole if not (norms and norms in name)]
        assert sorted(op.name for op in (*inputs, *weights) if not (norms and norms in op.name)) == sorted(once)
        assert {op.flops for op in weights} >= {op.flops for k, op in enumerate(chunk.ops) if k in weight_ops(chunk)}
        # AND gradients of parameters are made in the second
        assert not {i for op in inputs for i in op.writes if chunk.storages[i].kind is Kind.GRAD}
    # AND the first chunk, for which nobody waits, does all of it there
    first = rewrite(gpt(4, **LLAMA), planned("zb_h1"))[0]
    assert not backward_parts(first)[0]


@pytest.mark.parametrize("schedule", sorted(set(SCHEDULES) - {"terapipe"}))
def test_every_schedule_is_played(schedule):
    chunks = {"interleaved": 2, "zbv": 2, "dualpipev": 2}.get(schedule, 1)
    plan = planned(schedule, chunks)
    check(plan)
    parts = rewrite(gpt(4, **LLAMA), plan)
    grid = SCHEDULES[schedule](2, 8, chunks)
    for rank in range(2):
        stage_step(parts, grid, rank, 8).check()
    assert worst_stage(parts, plan, DEVICE).held.peak_reserved_bytes > 0


def test_versions_and_replicas_of_weights_rest_beside_them():
    def pinned(schedule):
        parts = rewrite(gpt(4, **LLAMA), planned(schedule, buffers=False))
        step = stage_step(parts, SCHEDULES[schedule](2, 8, 1), 0, 8)
        return sum(step.storages[i].nbytes for i in step.pinned if step.storages[i].kind is Kind.PARAM), parts

    one, parts = pinned("1f1b")
    assert pinned("pipedream")[0] == pinned("2bw")[0] == pinned("pipemare")[0] == 2 * one
    both = sum(p.storages[i].nbytes for p in parts for i in p.pinned if p.storages[i].kind is Kind.PARAM)
    assert pinned("gems")[0] == both


def test_blocks_are_where_the_cuts_say():
    found = split(gpt(4), planned("1f1b", cuts="1"))
    numbers = [{op.module[1] for op in chunk.ops if op.module[:1] == ("blocks",)} for chunk in found]
    assert numbers == [{"0"}, {"1", "2", "3"}]


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (Pipeline(cuts="3,1"), "2 chunks .* begin at 1 rising blocks"),
        (Pipeline(cuts="x"), "it is first blocks of chunks"),
        (Pipeline(schedule="zbv"), "pipeline.chunks is 1 under zbv, which has 2 a rank"),
        (Pipeline(schedule="varuna"), "remat.policy is none"),
        (Pipeline(schedule="nope"), "it is one of 1f1b"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(pipeline, message):
    with pytest.raises(UsageError, match=message):
        check(Plan(mesh=Mesh(pp=2), pipeline=pipeline))


def test_what_cannot_be_split_is_refused():
    with pytest.raises(UsageError, match="the model has 4 blocks"):
        split(gpt(4), planned("1f1b", cuts="4"))
    with pytest.raises(UnsupportedError, match="slices of a sequence"):
        split(gpt(4), planned("terapipe"))
