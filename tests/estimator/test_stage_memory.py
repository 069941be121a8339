from __future__ import annotations

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Batch, Mesh, Pipeline, Plan, Precision, Remat, Sharding
from dnnmem.estimator.rank_step import rank_step
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.schedules.grid import Step
from dnnmem.estimator.stage_memory import stage_step, worst_stage
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from tests.estimator.passes.steps import LLAMA, gpt, reserved

MIB = 1 << 20
DEVICE = find_cluster("h100-sxm-80gb:8").device
STRATEGIES = {
    "none": Plan(),
    "ddp": Plan(mesh=Mesh(dp_replicate=2), sharding=Sharding(strategy="ddp")),
    "zero1": Plan(mesh=Mesh(dp_shard=2), sharding=Sharding(strategy="zero1")),
    "zero2": Plan(mesh=Mesh(dp_shard=2), sharding=Sharding(strategy="zero2")),
    "zero3": Plan(mesh=Mesh(dp_shard=2), sharding=Sharding(strategy="zero3")),
}


def chunk(weight=10, activation=3, work=2, state=1):
    """A weight, an activation from forward to backward, a temporary in both, and one of the update; MiB."""
    sizes = {0: weight, 1: activation, 2: work, 3: work, 4: state}
    kinds = {0: Kind.PARAM, 1: Kind.ACTIVATION}
    storages = {
        i: Storage(id=i, nbytes=size * MIB, kind=kinds.get(i, Kind.TEMP), name=f"s{i}") for i, size in sizes.items()
    }

    def event(i, sign=1):
        return Event(sign * storages[i].nbytes, 0, i)

    ops = (
        Op(name="f", reads=(0,), writes=(1,), events=(event(1), event(2), event(2, -1))),
        Op(name="b", phase=Phase.BACKWARD, reads=(1,), events=(event(3), event(1, -1), event(3, -1))),
        Op(name="s", phase=Phase.STEP, writes=(0,), events=(event(4), event(4, -1))),
    )
    trace = Trace(ops=ops, storages=storages, setup=(event(0),), pinned=frozenset({0}))
    trace.check()
    return trace


def planned(m, schedule="1f1b", stages=4, chunks=1, base=STRATEGIES["none"], layers=8, *, buffers=True, **arguments):
    mesh = Mesh(pp=stages, dp_replicate=base.mesh.dp_replicate, dp_shard=base.mesh.dp_shard)
    plan = Plan(
        mesh=mesh,
        batch=Batch(accumulation=m),
        sharding=base.sharding,
        pipeline=Pipeline(schedule=schedule, chunks=chunks, buffers=buffers),
        **arguments,
    )
    return plan, rewrite(gpt(3, **LLAMA), plan, layers=layers)


def peaks(plan, parts):
    """Requested bytes of each rank at most."""
    p = plan.mesh.pp
    grid = SCHEDULES[plan.pipeline.schedule](p, plan.batch.accumulation, plan.pipeline.chunks)
    steps = [rank_step(parts[r::p], grid.ranks[r]) for r in range(p)]
    for step in steps:
        step.check()
    return [step.peak_bytes() for step in steps]


def test_a_rank_holds_a_micro_batch_for_each_forward_without_its_backward():
    # GIVEN stages of a weight of 10, activations of 3 and work of 2 each
    # WHEN rank 0 of 3 runs 1F1B: F0 F1 F2 B0 F3 B1 ...
    step = rank_step([chunk()], SCHEDULES["1f1b"](3, 5, 1).ranks[0])
    step.check()
    # THEN it holds three micro-batches and works in the third, or in the backward pass of the first
    assert step.peak_bytes() == (10 + 3 * 3 + 2) * MIB
    assert step.pinned_bytes() == 10 * MIB
    # AND the last rank holds one
    assert rank_step([chunk()], SCHEDULES["1f1b"](3, 5, 1).ranks[2]).peak_bytes() == (10 + 3 + 2) * MIB
    # AND gpipe holds all
    assert rank_step([chunk()], SCHEDULES["gpipe"](3, 5, 1).ranks[2]).peak_bytes() == (10 + 5 * 3 + 2) * MIB


def test_chunks_of_a_rank_share_what_is_the_same_storage():
    # GIVEN two chunks with a workspace of one id, and parameters of one id but other modules
    def with_workspace(module):
        trace = chunk()
        space = Storage(id=9, nbytes=MIB, kind=Kind.UNKNOWN, name="workspace")
        weight = Storage(id=0, nbytes=10 * MIB, kind=Kind.PARAM, name="s0", module=(module,))
        storages = {**trace.storages, 0: weight, 9: space}
        setup = (*trace.setup, Event(MIB, 0, 9))
        return Trace(ops=trace.ops, storages=storages, setup=setup, pinned=frozenset({0, 9}))

    step = rank_step([with_workspace("a"), with_workspace("b")], [Step("F", 0, 0), Step("B", 0, 0)])
    # THEN there is one workspace and two weights
    assert step.pinned_bytes() == 21 * MIB
    # AND their updates run together
    assert [op.name for op in step.ops[2:]] == ["s", "s"]


def test_what_the_program_holds_until_the_update_is_replaced_by_the_next_micro_batch():
    # GIVEN a loss that is freed in the update
    loss = Storage(id=0, nbytes=MIB, kind=Kind.ACTIVATION)
    ops = (
        Op(name="f", writes=(0,), events=(Event(MIB, 0, 0),)),
        Op(name="s", phase=Phase.STEP, events=(Event(-MIB, 0, 0),)),
    )
    trace = Trace(ops=ops, storages={0: loss})
    step = rank_step([trace], SCHEDULES["gpipe"](1, 4, 1).ranks[0])
    # THEN there are two of them for a moment, and none in the end
    step.check()
    assert step.peak_bytes() == 2 * MIB


@pytest.mark.parametrize("base", STRATEGIES.values(), ids=STRATEGIES)
def test_one_f_one_b_holds_no_more_for_more_micro_batches_and_gpipe_does(base):
    # GIVEN messages as Megatron holds them; PyTorch's stages have a place to receive each micro-batch
    short, long = (peaks(*planned(m, base=base, buffers=False)) for m in (4, 12))
    assert short[1:] == long[1:]
    held, more = peaks(*planned(4, "gpipe", base=base)), peaks(*planned(12, "gpipe", base=base))
    assert all(a > b for a, b in zip(more, held, strict=True))
    # AND gpipe never holds less
    assert all(a >= b for a, b in zip(held, short, strict=True))
    assert all(a > b for a, b in zip(more, long, strict=True))


def test_memory_falls_by_one_micro_batch_a_stage():
    # GIVEN 1F1B over four stages, those in the middle alike
    plan, parts = planned(12)
    found = peaks(plan, parts)
    grown, held = peaks(*planned(5, "gpipe")), peaks(*planned(4, "gpipe"))
    # THEN rank r holds p - r micro-batches: one less costs what one more costs gpipe
    assert found[1] - found[2] == grown[1] - held[1]


def test_a_gathered_parameter_is_there_once_however_many_micro_batches_are_in_flight():
    growth = []
    for base in (STRATEGIES["zero2"], STRATEGIES["zero3"]):
        four, eight = (peaks(*planned(m, "gpipe", base=base)) for m in (4, 8))
        growth.append(eight[1] - four[1])
    assert growth[0] == growth[1]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_the_steady_state_shows_in_few_micro_batches(schedule):
    # GIVEN far more micro-batches than stages
    chunks = 2 if schedule == "interleaved" else 1
    plan, parts = planned(32, schedule, chunks=chunks, remat=Remat(policy="selective"))
    grid = SCHEDULES[schedule](4, 32, chunks)
    every = [replay_trace(rank_step(parts[r::4], grid.ranks[r], 0, 32)).peak_reserved_bytes for r in range(4)]
    # THEN playing some on some ranks finds the peak of playing all on all
    found = worst_stage(parts, plan, DEVICE)
    assert found.held.peak_reserved_bytes == max(every) == every[found.rank]


def step_of(plan, parts, rank):
    pipeline = plan.pipeline
    grid = SCHEDULES[pipeline.schedule](plan.mesh.pp, plan.batch.accumulation, pipeline.chunks)
    found = stage_step(parts, grid, rank, plan.batch.accumulation)
    found.check()
    return found


def test_each_chunk_gathers_and_sends_on_streams_of_its_own():
    plan, parts = planned(4, "interleaved", stages=2, chunks=2, base=STRATEGIES["zero3"])
    streams = {event.stream for op in step_of(plan, parts, 0).ops for event in op.events}
    assert len(streams) == 5  # the computing one; of each chunk two


def test_a_tied_gradient_is_there_once_where_a_rank_has_both_ends_of_the_model():
    plan = Plan(mesh=Mesh(pp=2), batch=Batch(accumulation=4), pipeline=Pipeline(schedule="zbv", chunks=2))
    step = step_of(plan, rewrite(gpt(4), plan), 0)
    grads = {i for i, s in step.storages.items() if s.kind is Kind.GRAD}
    made = [e for op in step.ops for e in op.events if e.nbytes > 0 and e.storage in grads]
    # THEN the head makes it, before the first chunk has a gradient, and it goes with the update
    owners = [step.storages[e.storage].module for e in made]
    assert owners.count(("tokens",)) == 1
    assert owners.index(("tokens",)) < owners.index(("blocks", "0", "mlp", "2"))
    freed = [op.name for op in step.ops for e in op.events if e.storage == made[owners.index(("tokens",))].storage]
    assert freed[-1] == "dnnmem.zero_grad"


def test_what_a_chunk_hands_on_is_there_until_the_next_steps_takes_its_place():
    # GIVEN the rank at the bottom of a vee, which hands to itself
    plan = Plan(mesh=Mesh(pp=2), batch=Batch(accumulation=4), pipeline=Pipeline(schedule="zbv", chunks=2))
    step = step_of(plan, rewrite(gpt(4, **LLAMA), plan), 1)
    # THEN there are outputs and gradients of all micro-batches, and places for as many that come from elsewhere
    stream = 2 * 32 * 64 * 4
    resting = [s for s in step.storages.values() if s.id in step.pinned and s.kind is Kind.INPUT and s.nbytes == stream]
    assert len(resting) == 4 * 4


def test_one_update_is_made_over_the_parameters_of_all_chunks():
    # GIVEN two chunks a rank, and a list of the update that is made at once
    plan, parts = planned(4, "interleaved", stages=2, chunks=2, layers=4)
    [roots] = [op for op in step_of(plan, parts, 1).ops if op.name.startswith("aten._foreach_sqrt")]
    # THEN it has a tensor for each parameter of the rank
    params = [s for part in parts[1::2] for i, s in part.storages.items() if i in part.pinned and s.kind is Kind.PARAM]
    assert sum(event.nbytes > 0 for event in roots.events) == len(params)


def test_each_rank_that_is_sent_to_has_a_stream():
    # GIVEN a rank that sends both ways to one other, to two, and a vee's last one
    looped, vee = SCHEDULES["interleaved"], SCHEDULES["zbv"]
    counts = [
        looped(2, 4, 2).peers(0),
        *(looped(3, 6, 2).peers(r) for r in (0, 1)),
        *map(vee(4, 8, 2).peers, (0, 1, 3)),
    ]
    assert counts == [1, 2, 2, 1, 2, 1]
    assert [SCHEDULES["gpipe"](3, 3, 1).peers(r) for r in range(3)] == [1, 2, 1]


def test_a_whole_backward_pass_adds_up_in_place_beside_ones_that_are_taken_apart():
    # GIVEN a schedule of both, and layers whose backward passes add to what a later part would begin with
    plan = Plan(mesh=Mesh(pp=2), batch=Batch(accumulation=4), pipeline=Pipeline(schedule="dualpipev", chunks=2))
    parts = rewrite(gpt(4), plan)
    step = step_of(plan, parts, 1)
    # THEN the one allocates what the chunk does
    whole = [op for op in step.ops if op.name.startswith("dnnmem.backward.")]
    plain = {
        sum(e.nbytes > 0 for op in part.ops if op.phase is Phase.BACKWARD for e in op.events) for part in parts[1:3]
    }
    assert plain & {sum(e.nbytes > 0 for e in op.events) for op in whole}


def test_one_stage_holds_what_a_plain_step_does():
    plan = Plan(precision=Precision(param="float32"))
    [trace] = rewrite(gpt(3, **LLAMA, dtype="bfloat16"), plan)
    step = rank_step([trace], [Step("F", 0, 0), Step("B", 0, 0)])
    step.check()
    assert replay_trace(step).peak_reserved_bytes == reserved(trace)
    assert step.peak_bytes() == trace.peak_bytes()
