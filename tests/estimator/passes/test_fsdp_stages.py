"""FSDP2 in a stage: parameters are whole from gather to drop, gradients until they are reduced once a step."""

from __future__ import annotations

from collections import Counter

import pytest

from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.fsdp_stages import fetches, is_reduction, whole_parameters
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.schedules.grid import Step
from dnnmem.estimator.stage_memory import stage_step
from dnnmem.estimator.trace import Phase
from tests.estimator.passes.steps import gpt

SHARDED = ("mesh.pp=2", "mesh.dp_shard=2", "sharding.strategy=zero3", "batch.accumulation=4")


def chunks_of(*settings, blocks=4):
    plan = change(Plan(), (*SHARDED, *settings))
    return rewrite(gpt(blocks), plan), plan


def played(*settings, rank=0, blocks=4):
    chunks, plan = chunks_of(*settings, blocks=blocks)
    grid = SCHEDULES[plan.pipeline.schedule](2, 4, plan.pipeline.chunks)
    return stage_step(chunks, grid, rank, 4)


@pytest.mark.parametrize("settings", [(), ("precision.compute=bfloat16", "precision.reduce=float32")], ids=" ".join)
def test_gradients_are_reduced_once_a_step_and_not_in_its_backward_passes(settings):
    # GIVEN stages under zero3  THEN what reduces gradients is part of the update, and each chunk is a valid step
    for chunk in chunks_of(*settings)[0]:
        chunk.check()
        reductions = [op for op in chunk.ops if "reduce_scatter" in op.name]
        assert reductions
        assert all(is_reduction(op) for op in reductions)
        assert not any(op.name.startswith("dnnmem.reduce_scatter") for op in chunk.ops if op.phase is Phase.BACKWARD)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("sharding.strategy=zero2",),
        ("pipeline.schedule=gpipe",),
        ("pipeline.schedule=interleaved", "pipeline.chunks=2"),
        ("precision.compute=bfloat16", "precision.reduce=float32"),
        ("sharding.keep_last=false", "sharding.split_root=true", "remat.policy=full"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_leaves_what_it_found(settings, rank):
    # GIVEN the step of a rank  THEN it frees all that it gathers and sums, once, and nothing that is not there
    step = played(*settings, rank=rank)
    step.check()
    assert any("reduce_scatter" in op.name for op in step.ops)


def test_parameters_that_are_whole_are_not_gathered_again():
    # GIVEN zero2, whose parameters stay from the first forward pass to the last backward pass
    step = played("sharding.strategy=zero2")
    params = {(s.module, s.name) for s in step.storages.values() if s.kind.value == "param"}
    made = Counter(
        (s.module, s.name)
        for op in step.ops
        for e in op.events
        if e.nbytes > 0 and e.storage >= 0 and (s := step.storages[e.storage]).kind.value == "comm"
        and (s.module, s.name) in params
    )  # fmt: skip
    # THEN each of them is made once a step
    assert set(made.values()) == {1}
    assert whole_parameters(chunks_of("sharding.strategy=zero2")[0][0])


def test_at_most_three_chunks_are_whole():
    steps = [Step(phase, 0, c) for phase, order in (("F", range(5)), ("B", range(4, -1, -1))) for c in order]
    active = set()
    for (gone, new), step in zip(fetches(steps), steps, strict=True):
        active = active - set(gone) | set(new)
        assert step.chunk in active
        assert len(active) <= 3
