"""The search finds what pricing every plan would have found."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator import search_core
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import DnnmemError, UnsupportedError, UsageError
from dnnmem.estimator.plan import check
from dnnmem.estimator.ranking import ranked
from dnnmem.estimator.recommend import Wanted, budget_of, find, recommend, scope_of
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.search import MEMORY_SLOWDOWN, OBJECTIVES, Tally, key_of, priced_exactly
from dnnmem.estimator.search_core import Cost
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.search_grid import bounds
from dnnmem.estimator.techniques import choices
from dnnmem.estimator.time_model import load
from tests.estimator.passes.expert_steps import mixtures
from tests.estimator.passes.steps import LLAMA, gpt

DEGREES = frozenset({"tp", "pp"})
"""Left out where what else there is makes many plans."""


def recorded() -> Recorded:
    return Recorded(traces={4: gpt(4, batch=4), 2: gpt(4, batch=2)}, own_batch=4)


def machine(gpus=8, free_mib=64, speed=1.0):
    """GPUs with so little left beside the context that the small step may not fit."""
    cluster = find_cluster(f"h100:{gpus}")
    context = cluster.device.context_bytes
    device = replace(
        cluster.device, usable_bytes=context + (free_mib << 20),
        memory_bytes_per_s=cluster.device.memory_bytes_per_s / speed,
    )  # fmt: skip
    return replace(cluster, device=device)


def exhaustive(costs, space, wanted):
    """Every plan that fits, in order."""
    found = []
    budget = budget_of(wanted.cluster, wanted.headroom)
    for each in space:
        try:
            choice = each
            if each.planned_share:
                choice = replace(each, plan=costs.planned(each.plan, each.planned_share * budget))
                if choice.plan.remat.policy != "segments":
                    continue
            costs.bound(choice.plan)  # raises for what hosts cannot hold
            priced = priced_exactly(costs, choice, budget)
        except DnnmemError:
            continue
        if priced.estimate.peak_reserved_bytes <= budget:
            found.append(priced)
    if wanted.objective == "memory" and found:
        least = min(p.estimate.step_seconds for p in found)
        found = [p for p in found if p.estimate.step_seconds <= MEMORY_SLOWDOWN * least]
    spread = None if wanted.objective == "memory" else costs.model.spread
    return ranked(found, lambda p: key_of(wanted.objective, p.choice, cost(p)), spread)


def cost(priced):
    return Cost(seconds=priced.estimate.step_seconds, peak_bytes=priced.estimate.peak_reserved_bytes)


def assert_no_bound_is_above(costs, space, all_):
    """Each way to bound a plan's seconds and bytes is below what it really costs."""
    grid = bounds(costs, space)
    row = {choice.plan: n for n, choice in enumerate(space)}
    for priced in all_:
        plan, estimate = priced.choice.plan, priced.estimate
        assert grid.seconds[row[plan]] * (1 - 1e-9) <= estimate.step_seconds, plan
        assert grid.peak_bytes[row[plan]] <= estimate.peak_reserved_bytes, plan
        for bound in (costs.guess(plan), costs.bound(plan), costs.drawn(plan), costs.by_runs(plan)):
            assert bound.seconds * (1 - 1e-9) <= estimate.step_seconds, plan
            assert bound.peak_bytes <= estimate.peak_reserved_bytes, plan
        assert costs.families.least_bytes(plan) <= estimate.peak_reserved_bytes, plan


@settings(max_examples=12)
@given(
    objective=st.sampled_from(OBJECTIVES),
    gpus=st.sampled_from([1, 2, 4]),
    free_mib=st.integers(66, 78),
    speed=st.sampled_from([1.0, 8.0, 64.0]),
    host=st.sampled_from([0.01, 1.0]),
    without=st.sets(st.sampled_from(sorted({"zero1", "zero2", "remat", "fused", "remat-every"})), max_size=3),
)
def test_the_first_candidate_is_that_of_exhaustive_search(objective, gpus, free_mib, speed, host, without):
    # GIVEN a small space, on GPUs with little or enough memory, fast or slow
    cluster = machine(gpus, free_mib, speed)
    model = load(cluster.device)
    model = replace(model, host_seconds=model.host_seconds * host)
    wanted = Wanted(
        cluster=cluster, objective=objective, top=1, without=frozenset(without | DEGREES), max_techniques=2,
        headroom=0.0,
    )  # fmt: skip
    space = choices(scope_of(recorded(), wanted))
    costs = Costs(recorded=recorded(), cluster=cluster, model=model)
    # WHEN it is searched, and every plan of it is priced
    tally = Tally()
    found, all_ = find(costs, space, wanted, tally), exhaustive(costs, space, wanted)
    # THEN both have the same plan first, or none
    assert [p.choice.plan for p in found[:1]] == [p.choice.plan for p in all_[:1]]
    assert tally.considered == len(space)


@pytest.mark.parametrize(
    ("objective", "free_mib", "speed", "layers"),
    [("throughput", 90, 1.0, None), ("throughput", 68, 64.0, None), ("memory", 90, 8.0, 8), ("throughput", 76, 8.0, 8)],
)
def test_so_it_is_among_tensor_and_pipeline_parallel_plans(objective, free_mib, speed, layers):
    # GIVEN four GPUs, and every way to share blocks and matrices among them
    cluster = machine(4, free_mib, speed)
    model = load(cluster.device)
    model = replace(model, host_seconds=model.host_seconds * 0.01)
    traces = {n: gpt(3 if layers else 4, batch=n, **LLAMA) for n in (4, 2)}
    step = Recorded(traces=traces, layers=layers, own_batch=4)
    only = {"tp", "pp", "zero3", "accumulation", "interleaved", "zb_h1", "zbv", "remat-full"}
    wanted = Wanted(cluster=cluster, objective=objective, top=1, only=frozenset(only), headroom=0.0)
    space = choices(scope_of(step, wanted))
    costs = Costs(recorded=step, cluster=cluster, model=model)
    # WHEN they are searched, and all of them priced
    tally = Tally()
    found, all_ = find(costs, space, wanted, tally), exhaustive(costs, space, wanted)
    # THEN both have the same plan first; no bound is above a price
    assert {(c.plan.mesh.tp, c.plan.mesh.pp) for c in space} >= {(1, 1), (2, 1), (1, 2), (2, 2), (1, 4)}
    assert all_
    assert found[0].choice.plan == all_[0].choice.plan
    assert tally.considered == len(space)
    assert_no_bound_is_above(costs, space, all_)


@pytest.mark.parametrize(
    ("objective", "free_mib", "speed", "ep"), [("throughput", 400, 1.0, 1), ("memory", 400, 8.0, 4)]
)
def test_so_it_is_among_plans_that_share_experts(objective, free_mib, speed, ep):
    # GIVEN four GPUs, and a model with experts
    cluster = machine(4, free_mib, speed)
    model = load(cluster.device)
    model = replace(model, host_seconds=model.host_seconds * 0.01)
    step = Recorded(traces={n: mixtures(3, n) for n in (256, 128)}, own_batch=256)
    only = {"ep", "pp", "zero3", "remat-full"}
    wanted = Wanted(cluster=cluster, objective=objective, top=1, only=frozenset(only), headroom=0.0)
    space = choices(scope_of(step, wanted))
    costs = Costs(recorded=step, cluster=cluster, model=model)
    # WHEN ways to share them are searched, and all of them priced
    found, all_ = find(costs, space, wanted, Tally()), exhaustive(costs, space, wanted)
    # THEN both have the same plan first; no bound is above a price
    assert {choice.plan.mesh.ep for choice in space} == {1, 2, 4}
    assert found[0].choice.plan == all_[0].choice.plan
    assert found[0].choice.plan.mesh.ep == ep
    assert_no_bound_is_above(costs, space, all_)


@pytest.mark.parametrize(("objective", "free_mib", "share"), [("throughput", 90, 1e-6), ("throughput", 70, 4)])
def test_so_it_is_where_ranks_share_sequences_and_hosts_hold_little(objective, free_mib, share, monkeypatch):
    # GIVEN four GPUs that may share sequences, or put on their hosts what these can hold
    monkeypatch.setattr(search_core, "HOST_SHARE", share)
    cluster = machine(4, free_mib, 8.0)
    model = load(cluster.device)
    model = replace(model, host_seconds=model.host_seconds * 0.01)
    traces = {n: gpt(3, batch=n, **LLAMA) for n in (4, 2)}
    traces = {n: replace(trace, batch={**trace.batch, "seq_len": 32}) for n, trace in traces.items()}
    step = Recorded(traces=traces, layers=8, own_batch=4)
    only = {"cp", "tp", "zero3", "accumulation", "remat-full", "offload-optimizer"}
    wanted = Wanted(cluster=cluster, objective=objective, top=1, only=frozenset(only), headroom=0.0)
    space = choices(replace(scope_of(step, wanted), context=(2, 4)))
    costs = Costs(recorded=step, cluster=cluster, model=model)
    # WHEN they are searched, and all of them priced
    found, all_ = find(costs, space, wanted, Tally()), exhaustive(costs, space, wanted)
    # THEN both have the same plan first, which the rule for hosts allows, and no bound is above a price
    assert {(c.plan.mesh.cp, c.plan.mesh.tp) for c in space} >= {(1, 1), (2, 1), (2, 2), (4, 1)}
    assert [p.choice.plan for p in found[:1]] == [p.choice.plan for p in all_[:1]]
    assert all_
    assert any(p.choice.plan.mesh.cp > 1 for p in all_)
    rests = next(c.plan for c in space if c.plan.offload.optimizer and c.plan.mesh.world_size == 4)
    with pytest.raises(UnsupportedError, match="rest on hosts") if share < 1 else nullcontext():
        costs.bound(rests)
    assert_no_bound_is_above(costs, space, all_)


@pytest.mark.parametrize("objective", ["throughput", "memory"])
@pytest.mark.parametrize(("gpus", "free_mib"), [(1, 72), (1, 80), (2, 80), (2, 110)])
@pytest.mark.parametrize("host", [0.001, 1.0])
def test_so_it_is_where_three_blocks_stand_for_nine(objective, gpus, free_mib, host):
    # GIVEN a step of which three blocks were recorded, so that plans of some blocks are bounded without their ops
    cluster = machine(gpus, free_mib, 64.0)
    model = load(cluster.device)
    model = replace(model, host_seconds=model.host_seconds * host)
    few = Recorded(traces={n: gpt(3, batch=n, **LLAMA) for n in (4, 2)}, layers=9, own_batch=4)
    wanted = Wanted(cluster=cluster, objective=objective, top=1, max_techniques=2, headroom=0.0, without=DEGREES)
    space = choices(scope_of(few, wanted))
    costs = Costs(recorded=few, cluster=cluster, model=model)
    # WHEN it is searched, and every plan of it is priced
    found, all_ = find(costs, space, wanted, Tally()), exhaustive(costs, space, wanted)
    # THEN both have the same plan first
    assert all_
    assert found[0].choice.plan == all_[0].choice.plan


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("host", [0.001, 1.0])
def test_no_bound_is_above_the_price(gpus, host):
    # GIVEN three blocks that stand for nine, and every plan of the space
    few = Recorded(traces={n: gpt(3, batch=n, **LLAMA) for n in (4, 2)}, layers=9, own_batch=4)
    wanted = Wanted(cluster=machine(gpus, 4096), max_techniques=3, without=DEGREES | {"remat-planned"})
    model = load(wanted.cluster.device)
    costs = Costs(recorded=few, cluster=wanted.cluster, model=replace(model, host_seconds=model.host_seconds * host))
    space = choices(scope_of(few, wanted))
    assert any(choice.plan.offload.activations != "none" for choice in space)
    for choice in space:
        try:
            priced = costs.exact(choice.plan)
        except DnnmemError:
            continue
        # THEN none needs less, or is faster, than each of its bounds
        for bound in (costs.bound(choice.plan), costs.by_runs(choice.plan)):
            assert bound.seconds * (1 - 1e-9) <= priced.step_seconds, choice.plan
            assert bound.peak_bytes <= priced.peak_reserved_bytes, choice.plan


def test_a_search_leaves_out_what_a_bound_rules_out():
    # GIVEN a large GPU, on which plans differ in speed
    cluster = find_cluster("h100:8")
    model = replace(load(cluster.device), host_seconds=1e-7)
    wanted = Wanted(cluster=cluster, top=1)
    tally = Tally()
    # WHEN the best plan is looked for
    space = choices(scope_of(recorded(), wanted))
    find(Costs(recorded=recorded(), cluster=cluster, model=model), space, wanted, tally)
    # THEN most plans are never priced
    assert tally.priced < len(space) / 2
    assert tally.exact <= tally.priced


def test_twice_the_same_question_has_the_same_answer():
    # GIVEN a question
    wanted = Wanted(cluster=machine(4, 90), top=4, headroom=0.0)
    # WHEN it is asked twice
    one, two = (recommend(recorded(), wanted, load(wanted.cluster.device)) for _ in range(2))
    # THEN the answers are equal
    assert one.candidates == two.candidates
    assert one.candidates[0].estimate.fits


def test_candidates_are_told_with_reasons():
    # GIVEN GPUs on which the step as it is does not fit
    wanted = Wanted(cluster=machine(4, 72), top=3, headroom=0.0)
    # WHEN the best plans are asked for
    report = recommend(recorded(), wanted, load(wanted.cluster.device))
    # THEN each fits, says what it changes and why, and none changes training
    assert report.candidates
    for candidate in report.candidates:
        assert candidate.estimate.fits, candidate.techniques
        assert candidate.why.endswith(".")
        assert not candidate.alters_training
    assert [c.rank for c in report.candidates] == [1, 2, 3]


def test_nothing_fits_says_what_would():
    # GIVEN GPUs with next to nothing free
    wanted = Wanted(cluster=machine(2, 40), top=2, headroom=0.0)
    # WHEN the best plans are asked for
    report = recommend(recorded(), wanted, load(wanted.cluster.device))
    # THEN the nearest are told, and a change that fits
    assert not any(c.estimate.fits for c in report.candidates)
    assert "too much" in report.nothing_fits
    assert "cheapest change" in report.nothing_fits


def test_techniques_that_change_training_are_off():
    # GIVEN the space as it is, and with other optimizers allowed
    wanted = Wanted(cluster=machine())
    plain, more = (
        choices(scope_of(recorded(), replace(wanted, allow=frozenset(names)))) for names in ((), ("optimizer",))
    )
    # THEN only the second has plans that change training, and they say so
    assert not any(choice.alters for choice in plain)
    assert {choice.plan.optimizer.name for choice in more} >= {"sgd", "adafactor"}
    assert all(choice.alters for choice in more if choice.plan.optimizer.name)


def test_unknown_techniques_are_refused():
    # GIVEN a name that means nothing
    wanted = Wanted(cluster=machine(), only=frozenset({"zero9"}))
    # WHEN the space is made; THEN it is refused, and the known names are told
    with pytest.raises(UsageError, match="zero9") as error:
        choices(scope_of(recorded(), wanted))
    assert "zero3" in error.value.hint


def test_every_plan_of_a_space_is_its_own():
    # GIVEN a space of two nodes
    wanted = Wanted(cluster=find_cluster("dgx-h100:2"))
    # WHEN its plans are made
    space = choices(scope_of(recorded(), wanted))
    # THEN no plan is there twice, each has the global batch, and all files had their say
    assert len({(choice.plan, choice.planned_share) for choice in space}) == len(space)
    assert {c.plan.batch.micro_batch * c.plan.batch.accumulation * c.plan.mesh.data_ranks for c in space} == {64}
    for choice in space:
        check(choice.plan)
    names = {technique.name for choice in space for technique in choice.techniques}
    assert names >= {"tp", "pp", "interleaved", "hsdp", "accumulation", "remat-planned", "fused"}
    assert any(choice.plan.mesh.dp_replicate == 2 and choice.plan.mesh.dp_shard == 8 for choice in space)
