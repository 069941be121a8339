"""Runs of ops take the time of their ops, and no more memory: for every plan that is searched."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.search_core import sent_bytes
from dnnmem.estimator.search_cost import WHOLE, Costs
from dnnmem.estimator.time_model import load
from tests.estimator.passes.steps import LLAMA, gpt

PLANS = {
    "plain": [],
    "accumulation": ["batch.accumulation=4"],
    "ddp": ["mesh.dp_replicate=8", "sharding.strategy=ddp"],
    "ddp, accumulation": ["mesh.dp_replicate=8", "sharding.strategy=ddp", "batch.accumulation=2"],
    "zero1": ["mesh.dp_shard=8", "sharding.strategy=zero1"],
    "zero2": ["mesh.dp_shard=8", "sharding.strategy=zero2", "batch.accumulation=2"],
    "zero3": ["mesh.dp_shard=8", "sharding.strategy=zero3"],
    "hsdp": ["mesh.dp_shard=4", "mesh.dp_replicate=2", "sharding.strategy=zero3"],
    "full": ["mesh.dp_shard=8", "sharding.strategy=zero3", "remat.policy=full"],
    "selective": ["mesh.dp_shard=8", "sharding.strategy=zero3", "remat.policy=selective"],
    "every": ["mesh.dp_shard=8", "sharding.strategy=zero3", "remat.policy=every", "remat.every=2"],
    "segments": ["remat.policy=segments", "remat.segments=0-1(1)"],
    "fused": ["mesh.dp_replicate=8", "sharding.strategy=ddp", "optimizer.kernel=fused"],
}
SLOW_HOST, FAST_HOST = 1.0, 0.01
"""The recorded model is small: at its own host's speed nothing but the host is seen."""


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("host", [SLOW_HOST, FAST_HOST])
@pytest.mark.parametrize(("kind", "layers"), [({}, None), (LLAMA, 7)])
def test_runs_price_like_ops(plan, host, kind, layers):
    # GIVEN a step of three blocks, or of seven of which three were recorded
    cluster = find_cluster("h100:8")
    model = load(cluster.device)
    model = replace(model, host_seconds=model.host_seconds * host)
    recorded = Recorded(traces={2: gpt(3, **kind)}, layers=layers, own_batch=2)
    costs = Costs(recorded=recorded, cluster=cluster, model=model)
    plan = change(Plan(), plan)
    # WHEN it is bounded, priced by runs, and op by op
    bound, runs, exact = costs.bound(plan), costs.by_runs(plan), costs.exact(plan)
    # THEN the bound is below, runs take the same time, and need no more than is really allocated
    assert bound.seconds <= exact.step_seconds * (1 + 1e-9)
    assert bound.peak_bytes <= runs.peak_bytes <= exact.peak_allocated_bytes <= exact.peak_reserved_bytes
    if layers is not None and plan.remat.policy in WHOLE:  # which only a bound is known of
        assert bound.seconds <= runs.seconds <= exact.step_seconds
        return
    assert runs.seconds == pytest.approx(exact.step_seconds, rel=1e-9)
    assert runs.peak_bytes >= 0.97 * exact.peak_allocated_bytes


def test_a_run_that_touches_nothing_takes_no_time_of_the_host():
    # GIVEN a step whose first op makes and reads nothing, in a module of its own
    trace = gpt(3)
    nothing = {"events": (), "reads": (), "writes": (), "flops": 0, "moved_bytes": 0}
    idle = replace(trace.ops[0], name="aten.empty.memory_format", module=("positions",), **nothing)
    trace = replace(trace, ops=(idle, *trace.ops))
    cluster = find_cluster("h100")
    costs = Costs(recorded=Recorded(traces={2: trace}, own_batch=2), cluster=cluster, model=load(cluster.device))
    # WHEN it is priced by runs  THEN that is what its ops take
    exact = costs.exact(Plan())
    assert costs.by_runs(Plan()).seconds == pytest.approx(exact.step_seconds, rel=1e-9)


def test_runs_are_few():
    # GIVEN a step
    costs = Costs(
        recorded=Recorded(traces={2: gpt(3)}, own_batch=2),
        cluster=find_cluster("h100"),
        model=load(find_cluster("h100").device),
    )
    # WHEN its ops become runs
    core = costs.core(Plan())
    # THEN they are fewer, and all flops are there
    assert len(core.runs.ops) < len(core.trace.ops) / 1.5
    assert sum(op.flops for op in core.runs.ops) == sum(op.flops for op in core.trace.ops)
    core.runs.check()


@pytest.mark.parametrize("strategy", ["none", "zero2", "zero3"])
@pytest.mark.parametrize("settings", [["offload.activations=all"], ["offload.optimizer=true"]])
def test_what_rests_on_the_host_is_bounded(strategy, settings):
    # GIVEN a step of seven blocks that leaves something to the host
    cluster = find_cluster("h100:8")
    model = replace(load(cluster.device), host_seconds=1e-7)
    costs = Costs(recorded=Recorded(traces={2: gpt(3, **LLAMA)}, layers=7, own_batch=2), cluster=cluster, model=model)
    plan = change(
        Plan(), [*settings, *([f"sharding.strategy={strategy}", "mesh.dp_shard=8"] if strategy != "none" else [])]
    )
    # WHEN it is bounded, by its core, by runs, and priced  THEN each is no more than the next
    found = [costs.bound(plan), costs.by_runs(plan)]
    exact = costs.exact(plan)
    assert found[0].seconds <= found[1].seconds <= exact.step_seconds * (1 + 1e-9)
    assert all(cost.peak_bytes <= exact.peak_allocated_bytes for cost in found)


def test_no_more_rests_on_a_host_than_it_has():
    # GIVEN a step whose activations need more than four times a GPU's memory, were that so small
    cluster = find_cluster("h100")
    plan = change(Plan(), ["offload.activations=all", "offload.min_bytes=1"])
    recorded = Recorded(traces={2: gpt(3, **LLAMA)}, layers=7, own_batch=2)
    costs = Costs(recorded=recorded, cluster=cluster, model=load(cluster.device))
    sent = sent_bytes(costs.core(plan), plan)
    for memory, fits in ((sent / 3.9, True), (sent / 4.1, False)):
        costs.cluster = replace(cluster, device=replace(cluster.device, memory_bytes=int(memory)))
        # WHEN it is bounded  THEN it is refused, in words that say what was expected
        with nullcontext() if fits else pytest.raises(UnsupportedError, match="more would rest on hosts than they"):
            costs.bound(plan)
