from __future__ import annotations

import pytest

from dnnmem.estimator.coarsen import live_peak
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Batch, Mesh, Pipeline, Plan, Remat, Sharding
from dnnmem.estimator.rank_peak import rank_peak
from dnnmem.estimator.rank_step import rank_step
from dnnmem.estimator.rank_writer import Writer
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.trace import Kind
from tests.estimator.passes.steps import LLAMA, gpt

ALL = frozenset(Kind)
STATES = frozenset({Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER})
CHUNKS = {"interleaved": 2, "zbv": 2, "dualpipev": 2}


def planned(schedule, strategy="none", m=8, p=2, **more):
    """A pipeline's plan and its chunks."""
    sharded = {"ddp": {"dp_replicate": 2}, "none": {}}.get(strategy, {"dp_shard": 2})
    plan = Plan(
        mesh=Mesh(pp=p, **sharded), batch=Batch(accumulation=m), sharding=Sharding(strategy=strategy),
        pipeline=Pipeline(schedule=schedule, chunks=CHUNKS.get(schedule, 1)), **more,
    )  # fmt: skip
    return plan, rewrite(gpt(3, **LLAMA), plan, layers=8)


def ranks_of(plan, chunks):
    """Arguments of each rank's step, with whole backward passes."""
    p, m = plan.mesh.pp, plan.batch.accumulation
    grid = SCHEDULES[plan.pipeline.schedule](p, m, plan.pipeline.chunks)
    for r, row in enumerate(grid.ranks):
        mine = grid.stages[r]
        steps = tuple(s._replace(phase="B") if s.phase == "I" else s for s in row if s.phase != "W")
        yield ([chunks[s] for s in mine], steps, grid.extra_copies(r), m), len(mine) == 2 and mine[1] == mine[0] + 1


@pytest.mark.parametrize(
    ("schedule", "strategy", "m", "p"),
    [
        ("1f1b", "none", 8, 4),  # where a send holds what it sent
        ("1f1b", "zero3", 8, 2),
        ("gpipe", "ddp", 8, 2),
        ("interleaved", "zero2", 8, 2),
        ("interleaved", "zero3", 8, 2),
        ("zbv", "zero1", 8, 2),  # each rank has two chunks that follow each other, or both ends of the model
        ("zb_h1", "zero2", 8, 2),
    ],
)
def test_a_peak_without_the_step_is_that_of_the_step(schedule, strategy, m, p):
    plan, chunks = planned(schedule, strategy, m, p)
    for arguments, folded in ranks_of(plan, chunks):
        step = rank_step(*arguments, folded=folded)
        for kinds in (ALL, ALL - STATES, STATES):
            assert rank_peak(*arguments, folded=folded, kinds=kinds) == live_peak(step, kinds)


def test_equal_micro_batches_are_written_out_once(monkeypatch):
    # GIVEN interleaved stages that recompute, of 8 micro-batches and of 32
    written = []
    ops = Writer.ops
    monkeypatch.setattr(Writer, "ops", lambda self, step: written.append(step) or ops(self, step))
    counts = []
    for m in (8, 32):
        plan, chunks = planned("interleaved", "zero2", m, remat=Remat(policy="full"))
        written.clear()
        found = [rank_peak(*arguments, folded=folded) for arguments, folded in ranks_of(plan, chunks)]
        counts.append(len(written))
        assert found == [
            live_peak(rank_step(*arguments, folded=folded)) for arguments, folded in ranks_of(plan, chunks)
        ]
        written.clear()
    # THEN as many passes are written out for both
    assert counts[0] == counts[1] < 32
