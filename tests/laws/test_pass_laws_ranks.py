"""What holds for ranks that share sequences (cp) and experts (ep), alone and beside other fields of a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.passes import PASSES, rewrite
from dnnmem.estimator.passes.expert_layers import SENT
from dnnmem.estimator.passes.expert_layers import find_layers as layers_of
from dnnmem.estimator.plan import Batch, Context, Experts, Mesh, Optimizer, Plan, Remat, Sharding, Tensor, check
from dnnmem.estimator.trace import Kind, Lane, Phase
from tests.estimator.passes.expert_steps import mixture, mixtures
from tests.estimator.passes.steps import LLAMA, gpt

STEPS = {"gpt": {}, "llama": {**LLAMA, "kv_heads": 4}, "bfloat16": {**LLAMA, "kv_heads": 4, "dtype": "bfloat16"}}
METHODS = ("all_gather", "ring", "ulysses")
ZERO3 = Sharding(strategy="zero3")
EP = 4


def step_of(name):
    """A step of four blocks and four heads over sequences of 32."""
    trace = gpt(4, **STEPS[name])
    return replace(trace, batch={**trace.batch, "seq_len": 32})


def flops_of(traces):
    return sum(op.flops for trace in traces for op in trace.ops if op.lane is Lane.COMPUTE)


def saved_bytes(trace):
    """What forward passes keep for backward ones."""
    return sum(s.nbytes for s in trace.storages.values() if s.saved and s.kind is Kind.ACTIVATION)


@st.composite
def shared(draw):
    """Any plan with sequences over ranks, and one of its ranks."""
    method = draw(st.sampled_from(METHODS))
    tp = draw(st.sampled_from([1, 2]))
    cp = draw(st.sampled_from([2, 4] if tp == 1 or method != "ulysses" else [2]))
    strategy = draw(st.sampled_from(["none", "ddp", "zero1", "zero2", "zero3"]))
    shard = draw(st.sampled_from([1, 2])) if strategy.startswith("zero") else 1
    policy = draw(st.sampled_from(["none", "full", "every", "selective"]))
    plan = Plan(
        mesh=Mesh(cp=cp, tp=tp, dp_shard=shard, pp=draw(st.sampled_from([1, 2]))),
        batch=Batch(accumulation=draw(st.sampled_from([1, 2]))),
        tensor=Tensor(sequence_parallel=tp > 1 and draw(st.booleans())),
        context=Context(method=method),
        optimizer=Optimizer(kernel=draw(st.sampled_from([None, "fused", "for_loop"]))),
        remat=Remat(policy=policy, every=2 if policy == "every" else 1),
        sharding=Sharding(strategy=strategy),
    )
    check(plan)
    return plan, draw(st.integers(0, cp * tp * shard - 1))


@given(st.sampled_from(sorted(STEPS)), shared())
@settings(max_examples=20)
def test_every_rank_of_a_sequence_has_a_valid_step_that_does_its_part(name, chosen):
    # GIVEN a recorded step, and any plan under which ranks share its sequences
    plan, rank = chosen
    trace = step_of(name)
    found = rewrite(trace, plan, rank=rank)
    # THEN each chunk is a step that can follow itself
    assert len(found) == plan.mesh.pp
    for chunk in found:
        chunk.check()
    # AND ranks together do all the work; what none of them shares is small
    passes = [replace(chunk, ops=tuple(op for op in chunk.ops if op.phase is not Phase.STEP)) for chunk in found]
    whole = sum(op.flops for op in trace.ops if op.phase is not Phase.STEP)
    assert flops_of(passes) * plan.mesh.cp * plan.mesh.tp >= whole * 0.999


@pytest.mark.parametrize("method", METHODS)
def test_one_rank_a_sequence_is_the_step_itself(method):
    trace = step_of("llama")
    assert PASSES["context"](trace, Plan(context=Context(method=method)), None) is trace


@pytest.mark.parametrize("name", sorted(STEPS))
@pytest.mark.parametrize("method", METHODS)
def test_more_ranks_a_sequence_never_keep_more(name, method):
    # GIVEN one, two and four ranks a sequence
    degrees = (1, 2, 4)
    found = [
        PASSES["context"](step_of(name), Plan(mesh=Mesh(cp=cp), context=Context(method=method)), None) for cp in degrees
    ]
    # THEN what is kept falls, and parameters, gradients and states stay whole
    kept = [saved_bytes(one) for one in found]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]
    lasting = [sum(one.storages[i].nbytes for i in one.pinned) for one in found]
    assert len(set(lasting)) == 1


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_ranks_of_a_sequence_split_parameters_as_data_ranks_do(strategy):
    # GIVEN four ranks, of which none, two or all share a sequence  WHEN FSDP2 splits parameters
    ways = [Mesh(dp_shard=4), Mesh(dp_shard=2, cp=2), Mesh(cp=4)]
    held = []
    for mesh in ways:
        [found] = rewrite(step_of("llama"), Plan(mesh=mesh, sharding=Sharding(strategy=strategy)))
        held.append(sorted(s.nbytes for s in found.storages.values() if s.kind is Kind.PARAM and s.id in found.pinned))
    # THEN a rank holds the same parts of them
    assert held[0] == held[1] == held[2]


@pytest.mark.parametrize("wished", [Experts(), Experts(imbalance=2.0), Experts(capacity=1.25), Experts(grouped=False)])
def test_one_rank_of_experts_is_the_step_itself(wished):
    assert PASSES["experts"](mixture(), Plan(experts=wished), None) is mixture()


@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("ep", [2, 4, 8])
def test_experts_are_divided_and_their_work_is_not(ep, pp):
    # GIVEN balanced routing  WHEN ep ranks share the experts
    step = mixtures(2, 64)
    plan = Plan(mesh=Mesh(dp_shard=8, ep=ep, pp=pp), sharding=ZERO3)
    check(plan)
    found = rewrite(step, plan)
    # THEN each chunk is a step, and a rank computes as many rows as it sends
    for chunk in found:
        chunk.check()
    plain = rewrite(step, replace(plan, mesh=replace(plan.mesh, ep=1)))
    assert flops_of(found) == pytest.approx(flops_of(plain), rel=0.001)
    # AND holds as many experts as before: they are split over ep ranks, and then over fewer
    sizes = [
        sum(one.storages[i].nbytes for one in traces for i in one.pinned if one.storages[i].module[-1:] == ("experts",))
        for traces in (found, plain)
    ]
    assert sizes[0] == sizes[1] > 0


@given(st.lists(st.sampled_from([1.0, 1.1, 1.5, 2.0, 3.0, 4.0]), min_size=2, max_size=4, unique=True))
@settings(max_examples=10)
def test_the_busiest_rank_needs_more_the_less_routing_is_balanced(imbalances):
    found = [
        PASSES["experts"](
            mixture(), Plan(mesh=Mesh(dp_shard=EP, ep=EP), sharding=ZERO3, experts=Experts(imbalance=x)), None
        )
        for x in sorted(imbalances)
    ]
    for measure in (lambda one: one.peak_bytes(), lambda one: flops_of([one]), _sent):
        values = [measure(one) for one in found]
        assert values == sorted(values)
    assert _sent(found[0]) < _sent(found[-1])


def _sent(trace):
    return sum(op.moved_bytes for op in trace.ops if op.name == SENT)


def test_what_comes_before_and_after_finds_as_many_experts():
    # GIVEN a rank's own experts  WHEN layers are looked for once more
    plan = Plan(mesh=Mesh(dp_shard=EP, ep=EP), sharding=ZERO3)
    found = PASSES["experts"](mixture(), plan, None)
    # THEN they are the rank's, and rows of them are as many as arrive
    [before], [after] = layers_of(mixture(), 1), layers_of(found, 1)
    assert (after.experts * EP, after.rows) == (before.experts, before.rows)
