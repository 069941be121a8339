"""Prices from another process: the same answers, and none where there is no other process or it cannot answer."""

from __future__ import annotations

import os
import signal

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.plan import Optimizer, Plan
from dnnmem.estimator.recommend import Wanted, recommend
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.search_ahead import ahead_of
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.time_model import load
from tests.estimator.passes.steps import gpt

CLUSTER = find_cluster("h100:4")


@pytest.fixture(scope="module")
def recorded():
    return Recorded(traces={4: gpt(4, batch=4), 2: gpt(4, batch=2)}, own_batch=4)


@pytest.fixture(scope="module")
def model():
    return load(CLUSTER.device)


def answer(recorded, model, ahead):
    report = recommend(recorded, Wanted(cluster=CLUSTER, max_techniques=2), model, ahead=ahead)
    return [(c.estimate, c.techniques, c.why, c.tied_with) for c in report.candidates], report.priced


def test_the_answer_is_that_of_one_process(recorded, model):
    # GIVEN a search, and one whose prices also come from two other processes
    alone = answer(recorded, model, None)
    with ahead_of(recorded, CLUSTER, model, processes=2) as ahead:
        beside = answer(recorded, model, ahead)
    # THEN plans, prices, order and words are the same
    assert beside == alone


def test_a_price_that_was_begun_is_taken_once(recorded, model):
    with ahead_of(recorded, CLUSTER, model, processes=1) as ahead:
        ahead.begin_runs(Plan())
        found = ahead.runs(Plan())
        assert ahead.runs(Plan()) is None
    costs = Costs(recorded=recorded, cluster=CLUSTER, model=model)
    assert found == (costs.by_runs(Plan()), costs.lasting[Plan()])


def test_what_is_an_error_there_is_left_to_the_search(recorded, model):
    # GIVEN a plan that has no price
    impossible = Plan(optimizer=Optimizer(name="adamw", kernel="unheard of"))
    with ahead_of(recorded, CLUSTER, model, processes=1) as ahead:
        ahead.begin_runs(impossible)
        assert ahead.runs(impossible) is None


def test_a_search_goes_on_without_a_process_that_died(recorded, model):
    with ahead_of(recorded, CLUSTER, model, processes=1) as ahead:
        ahead.begin_runs(Plan())
        ahead.runs(Plan())
        for pid in list(ahead.pool._processes):
            os.kill(pid, signal.SIGKILL)
        assert answer(recorded, model, ahead) == answer(recorded, model, None)


def test_without_processes_there_is_none(recorded, model):
    with ahead_of(recorded, CLUSTER, model, processes=0) as ahead:
        assert ahead is None
