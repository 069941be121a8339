"""Ranks that differ are run, first, middle and last; those that do the same, once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.estimate import price
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.rank_samples import predicted_bytes, samples_of, shapes_of
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.time_model import load
from tests.estimator.passes.steps import LLAMA, gpt


@pytest.mark.parametrize(
    ("settings", "ranks", "why"),
    [
        ((), (0,), ""),
        (("mesh.dp_replicate=8", "sharding.strategy=ddp"), (0,), "all 8 ranks do the same"),
        (("mesh.dp_shard=8", "sharding.strategy=zero3"), (0,), "all 8 ranks do the same"),
        (("mesh.dp_shard=7", "sharding.strategy=zero3"), (0, 3, 6), "7 equal parts"),
        (("mesh.dp_shard=8", "sharding.strategy=zero1"), (0, 4, 7), "one rank's"),
        (("mesh.tp=4", "mesh.cp=2"), (0, 4), "halves of queries"),
        (("mesh.cp=8",), (0, 1, 2, 7), "halves of queries"),
        (("mesh.cp=4", "mesh.dp_shard=2", "sharding.strategy=zero3"), (0, 1, 2, 3), "halves of queries"),
        (("mesh.cp=2", "mesh.dp_shard=3", "sharding.strategy=zero3"), (0, 1, 5), "halves of queries"),
        (("mesh.tp=4", "mesh.cp=2", "context.method=ulysses"), (0,), "all 8 ranks do the same"),
        (("mesh.pp=4", "mesh.tp=2"), (0, 4, 6), "of the 2 ranks of a stage"),
        (("mesh.pp=2",), (0, 1), "a rank is a stage"),
    ],
)
def test_the_ranks_that_stand_for_all(settings, ranks, why):
    # GIVEN parameters of 64 and 512 rows  WHEN a plan's ranks are told apart  THEN those that differ are named
    found = samples_of(change(Plan(), settings), [(64, 64), (512,), ()])
    assert found.ranks == ranks
    assert why in found.why


def test_each_stage_has_a_prediction_of_its_own():
    # GIVEN three blocks that stand for eight, in four stages
    recorded = Recorded(traces={2: gpt(3, batch=2, **LLAMA)}, layers=8, own_batch=2)
    plan, cluster = change(Plan(), ["mesh.pp=4", "batch.micro_batch=2", "batch.accumulation=8"]), find_cluster("h100:4")
    # WHEN ranks are predicted one by one
    found = predicted_bytes(recorded, plan, cluster, (0, 2, 3))
    # THEN the first stage holds more micro-batches than a middle one, and the plan's peak is that of the worst
    assert list(found) == [0, 2, 3]
    assert found[0] > found[2]
    worst = price(local_step(recorded.traces[2], plan, cluster, 8), load(cluster.device))
    assert max(found.values()) == worst.peak_reserved_bytes
    assert shapes_of(recorded)


@pytest.mark.parametrize(
    "settings", [["mesh.cp=2", "sharding.strategy=ddp"], ["mesh.dp_shard=2", "sharding.strategy=zero1"]]
)
def test_so_has_each_rank_that_differs_and_no_other(settings):
    trace, cluster = gpt(3, batch=2, **LLAMA), find_cluster("h100:2")
    trace = replace(trace, batch={**trace.batch, "seq_len": 32})
    recorded = Recorded(traces={2: trace}, layers=None, own_batch=2)
    plan = change(Plan(), [*settings, "batch.micro_batch=2"])
    ranks = samples_of(plan, shapes_of(recorded)).ranks
    assert list(predicted_bytes(recorded, plan, cluster, ranks)) == [0, 1]
    assert not predicted_bytes(recorded, plan, cluster, (0,))
