"""What late and sparse gradients cannot go with is not offered beside them."""

from __future__ import annotations

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Mesh, Pipeline, Plan, Remat, check
from dnnmem.estimator.plan_pipeline import SPLITS
from dnnmem.estimator.techniques import Scope, choices

PIPELINES = {"schedule", "pp", "tp", "zero3", "ddp", "remat-full", "accumulation", "offload", "offload_optimizer"}


def scope(gpus=8, **more):
    return Scope(
        cluster=find_cluster(f"h100-sxm-80gb:{gpus}"), gpus=(gpus,), global_batch=4 * gpus, micro_batches=(1,),
        blocks=8, fields=frozenset({"pipeline", "tensor", "context", "remat", "offload", "offload_optimizer"}),
        tensor=((2, ("tensor.sequence_parallel=true", "tensor.keep_gathered=true")), (4, ())), **more,
    )  # fmt: skip


def test_schedules_with_late_gradients_are_offered_where_they_can_be_applied():
    # GIVEN all schedules that PyTorch has, asked for by name, and ways to share and recompute
    found = choices(scope(only=frozenset(PIPELINES | SPLITS)))
    stages = [choice.plan for choice in found if choice.plan.mesh.pp > 1]
    split = [plan for plan in stages if plan.pipeline.schedule in SPLITS]
    # THEN those whose gradients of weights come by themselves share them with nobody
    assert {plan.pipeline.schedule for plan in split} == SPLITS
    assert {plan.mesh.data_ranks for plan in split} == {1}
    assert len({plan.mesh.data_ranks for plan in stages}) > 1


@pytest.mark.parametrize("schedule", sorted(SPLITS))
def test_schedules_with_late_gradients_are_no_plans_with_recomputation(schedule):
    chunks = 1 if schedule == "zb_h1" else 2
    plan = Plan(mesh=Mesh(pp=2), pipeline=Pipeline(schedule=schedule, chunks=chunks), remat=Remat(policy="full"))
    with pytest.raises(UsageError, match="without recomputation"):
        check(plan)


def test_ranks_do_not_meet_where_gradients_are_sparse():
    meet = {(c.plan.mesh.data_ranks, c.plan.mesh.tp, c.plan.mesh.cp) for c in choices(scope(context=(2,), sparse=True))}
    assert meet == {(1, 1, 1)}  # stages alone
    assert len({c.plan.mesh.data_ranks for c in choices(scope(context=(2,)))}) > 1
