"""The best plans are run until as many have as were asked for; those that fail come last."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from dnnmem.cli.recommend_verify import _on_gpus, runner_of, verified
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.recommend import Wanted, recommend
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.report import Verified
from dnnmem.estimator.time_model import load
from dnnmem.profilers.record_sizes import record_sizes
from dnnmem.profilers.request import Request
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT
from tests.estimator.passes.steps import gpt

CLUSTER = find_cluster("h100:8")
REQUEST = Request(target="model.py", batch_size=4)
RAN = Verified(device="virtual", outcome="ran", peak_allocated_bytes=90, peak_reserved_bytes=100)
DIED = Verified(device="virtual", outcome="out_of_memory", message="out of memory in step 1")


@pytest.fixture(scope="module")
def report():
    recorded = Recorded(traces={4: gpt(3, batch=4), 2: gpt(3, batch=2)}, own_batch=4)
    return recommend(recorded, Wanted(cluster=CLUSTER, top=6), load(CLUSTER.device))


def stand_in(report, dead, asked):
    """A runner on which plans of the ranks `dead` run out of memory, the last job being done first."""
    ranks = {candidate.estimate.plan: candidate.rank for candidate in report.candidates}

    def run(jobs):
        asked.append([(ranks[plan], request.batch_size) for request, plan in jobs])
        for index in reversed(range(len(jobs))):
            yield index, DIED if ranks[jobs[index][1]] in dead else RAN

    return run


def test_the_next_takes_the_place_of_one_that_fails(report):
    # GIVEN six plans, of which the second and the fourth do not run
    asked, said = [], []
    # WHEN three are to be verified, and four told
    found = verified(report, REQUEST, 3, said.append, top=4, runner=stand_in(report, {2, 4}, asked))
    # THEN one was run in the place of the second, and another in the place of the fourth, each at its micro-batch
    assert [[rank for rank, _ in some] for some in asked] == [[1, 2, 3], [4], [5]]
    micro = {c.rank: c.estimate.plan.batch.micro_batch for c in report.candidates}
    assert all(batch == micro[rank] for some in asked for rank, batch in some)
    # AND those that ran come first, then what was not run, then those that failed
    plans = [c.estimate.plan for c in report.candidates]
    assert [c.estimate.plan for c in found.candidates] == [plans[i - 1] for i in (1, 3, 5, 6, 2, 4)]
    assert [c.verified for c in found.candidates] == [RAN, RAN, RAN, None, DIED, DIED]
    assert [c.rank for c in found.candidates] == [1, 2, 3, 4, 5, 6]
    assert said[-1] == "running plans 5: 3 of 3 have run, 2 failed"


def test_ties_are_named_by_the_new_ranks(report):
    # GIVEN three plans, the first and the third tied  WHEN the second one fails  THEN the ties are the same plans'
    first, second, third = report.candidates[:3]
    three = (replace(first, tied_with=(3,)), replace(second, tied_with=()), replace(third, tied_with=(1,)))
    report = replace(report, candidates=three)
    found = verified(report, REQUEST, 2, lambda _: None, top=3, runner=stand_in(report, {2}, []))
    assert [c.tied_with for c in found.candidates] == [(2,), (1,), ()]


def test_a_saved_trace_cannot_be_run(report):
    with pytest.raises(UnsupportedError, match="no model"):
        verified(report, None, 1, lambda _: None, top=1, runner=stand_in(report, (), []))


def test_plans_of_more_gpus_than_there_are_run_on_virtual_ones(report, monkeypatch):
    # GIVEN a machine of two GPUs, and plans of one, and of eight
    real = replace(RAN, device="cuda", step_seconds=0.1)
    monkeypatch.setattr("dnnmem.profilers.verify_cuda.verify_cuda", lambda *_: real)
    eight = report.candidates[0].estimate.plan
    one = replace(eight, mesh=replace(eight.mesh, dp_shard=1, dp_replicate=1))
    # WHEN they are run
    found = dict(_on_gpus([(REQUEST, eight), (REQUEST, one)], there=2, virtual=stand_in(report, (), [])))
    # THEN each where it can
    assert found == {0: RAN, 1: real}


@pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
def test_two_plans_of_a_small_model_really_run():
    # GIVEN a small model's best plans on two GPUs
    cluster = find_cluster("a10g:2")
    small = {"layers": "2", "width": "256", "heads": "4", "vocab": "1000", "context": "128"}
    request = Request(
        target=str(ROOT / "sample_models" / "gpt.py"), batch_size=4, seq_len=128, args=small, device="fake",
        gpu=cluster.device.name,
    )  # fmt: skip
    report = recommend(record_sizes(request), Wanted(cluster=cluster, top=2), load(cluster.device))
    # WHEN two are verified at once
    runner = runner_of(cluster, os.environ, "process")
    found = verified(report, request, 2, lambda _: None, top=2, runner=runner)
    # THEN both ran, and needed what was predicted within 2 %
    for candidate in found.candidates:
        assert candidate.verified.outcome == "ran", candidate.verified.message
        assert abs(candidate.verified.difference(candidate.estimate.peak_reserved_bytes)) < 0.02
