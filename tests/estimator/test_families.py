from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.families import families
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.recommend import Wanted, recommend
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.report import Verified
from dnnmem.estimator.time_model import load
from tests.estimator.passes.steps import gpt

CLUSTER = find_cluster("h100:8")


@pytest.fixture(scope="module")
def candidates():
    """The first two plans of a search, tied."""
    wanted = Wanted(cluster=CLUSTER, top=2)
    report = recommend(Recorded(traces={4: gpt(3, batch=4)}, own_batch=4), wanted, load(CLUSTER.device))
    first, second = report.candidates
    return replace(first, tied_with=(2,)), replace(second, tied_with=(1,))


def ranks(found):
    return [(family.first.rank, [other.rank for other in family.alike]) for family in found]


def test_plans_that_nobody_would_choose_between_are_one_family(candidates):
    # GIVEN two plans that are tied, of nearly the same memory  THEN the first stands for both
    assert ranks(families(candidates)) == [(1, [2])]


@pytest.mark.parametrize("what", ["time", "memory", "gpus", "training", "run"])
def test_a_reason_to_choose_makes_two(candidates, what):
    # GIVEN two plans that differ in something a person chooses by
    first, second = candidates
    estimate = second.estimate
    other = {
        "time": {"tied_with": ()},
        "memory": {"estimate": replace(estimate, peak_reserved_bytes=estimate.peak_reserved_bytes + (2 << 30))},
        "gpus": {"estimate": replace(estimate, plan=change(Plan(), ["mesh.dp_replicate=2", "sharding.strategy=ddp"]))},
        "training": {"alters_training": ("SGD",)},
        "run": {"verified": Verified(device="virtual", outcome="ran")},
    }[what]
    first = replace(first, tied_with=()) if what == "time" else first
    # THEN each has a line of its own
    assert ranks(families([first, replace(second, **other)])) == [(1, []), (2, [])]
