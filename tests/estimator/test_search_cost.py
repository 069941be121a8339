"""What a search asks once of plans that share it."""

from __future__ import annotations

from dataclasses import replace

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.plan import Batch, Mesh, Plan, Remat, Sharding
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.time_model import load
from tests.estimator.passes.steps import gpt


def test_plans_that_differ_in_what_is_computed_again_are_guessed_from_one_bound(monkeypatch):
    # GIVEN a step of few blocks, and plans over 8 GPUs that compute some of its blocks again
    cluster = find_cluster("h100:8")
    recorded = Recorded(traces={1: gpt(3, batch=1)}, layers=12, own_batch=1)
    costs = Costs(recorded=recorded, cluster=cluster, model=load(cluster.device))
    plan = Plan(mesh=Mesh(dp_shard=8), batch=Batch(micro_batch=1), sharding=Sharding(strategy="zero3"))
    asked = []
    bound = Costs.bound
    monkeypatch.setattr(Costs, "bound", lambda self, one: asked.append(one) or bound(self, one))
    # WHEN each is guessed
    every = [replace(plan, remat=Remat(policy="every", every=k)) for k in (2, 3, 4)]
    guesses = [costs.guess(one) for one in every]
    # THEN the plan that keeps everything is bounded once, and fewer blocks again take less
    assert asked == [plan]
    assert sorted(guesses, key=lambda cost: -cost.seconds) == guesses
