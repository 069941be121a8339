"""Prices from another process: the same answers, and none where there is no other process or it cannot answer."""

from __future__ import annotations

from contextlib import contextmanager

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
RUNS = ("runs", Plan(), 0.0)
"""The question for the price of a plan by runs."""


@pytest.fixture(scope="module")
def recorded():
    return Recorded(traces={4: gpt(4, batch=4), 2: gpt(4, batch=2)}, own_batch=4)


@pytest.fixture(scope="module")
def model():
    return load(CLUSTER.device)


@contextmanager
def knowing(recorded, model, processes=1):
    """Helpers that have the step, and are waiting."""
    with ahead_of(processes=processes) as ahead:
        ahead.know(recorded, CLUSTER, model)
        assert all(helper.link.poll(60) for helper in ahead.helpers)
        assert not ahead.is_begun(RUNS)
        yield ahead


def answer(recorded, model, ahead):
    report = recommend(recorded, Wanted(cluster=CLUSTER, max_techniques=2), model, ahead=ahead)
    return [(c.estimate, c.techniques, c.why, c.tied_with) for c in report.candidates], report.priced


def test_the_answer_is_that_of_one_process(recorded, model):
    # GIVEN a search, and one whose prices also come from two other processes
    alone = answer(recorded, model, None)
    with knowing(recorded, model, processes=2) as ahead:
        beside = answer(recorded, model, ahead)
    # THEN plans, prices, order and words are the same
    assert beside == alone


def test_a_price_that_was_begun_is_taken_once(recorded, model):
    with knowing(recorded, model) as ahead:
        ahead.begin(RUNS, Plan())
        found = ahead.answer(RUNS)
        assert ahead.answer(RUNS) is None
    costs = Costs(recorded=recorded, cluster=CLUSTER, model=model)
    assert found == (costs.by_runs(Plan()), costs.lasting[Plan()])


def test_what_is_an_error_there_is_left_to_the_search(recorded, model):
    # GIVEN a plan that has no price
    impossible = Plan(optimizer=Optimizer(name="adamw", kernel="unheard of"))
    with knowing(recorded, model) as ahead:
        ahead.begin(("runs", impossible, 0.0), impossible)
        assert ahead.answer(("runs", impossible, 0.0)) is None


def test_a_search_goes_on_without_a_process_that_died(recorded, model):
    with knowing(recorded, model) as ahead:
        ahead.begin(RUNS, Plan())
        ahead.answer(RUNS)
        ahead.begin(RUNS, Plan())
        for helper in ahead.helpers:
            helper.process.kill()
        assert answer(recorded, model, ahead) == answer(recorded, model, None)


def test_without_processes_there_is_none():
    with ahead_of(processes=0) as ahead:
        assert ahead is None


def test_who_does_not_know_the_step_yet_is_not_waited_for(recorded, model):
    # GIVEN helpers that are still importing
    with ahead_of(processes=1) as ahead:
        ahead.know(recorded, CLUSTER, model)
        # WHEN a price is asked for at once THEN it was not begun
        ahead.begin(RUNS, Plan())
        assert ahead.answer(RUNS) is None
