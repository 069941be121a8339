"""Less than whole gradients is searched only where it is asked for, and only between replicas."""

from __future__ import annotations

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.plan import Gradients, check
from dnnmem.estimator.techniques import Scope, choices
from dnnmem.estimator.techniques.gradients import NAMES


def scope(**options):
    given = {"global_batch": 8, "micro_batches": (1,), "blocks": 4, "gpus": (8,), "fields": frozenset({"gradients"})}
    return Scope(cluster=find_cluster("h100-sxm-80gb:8"), **{**given, **options})


def test_whole_gradients_unless_it_is_allowed():
    assert all(choice.plan.gradients == Gradients() for choice in choices(scope()))


def test_every_way_between_replicas_where_it_is_allowed():
    # GIVEN leave  THEN each way is there once, says what it changes, and goes with DDP alone
    found = [
        c for c in choices(scope(allow=frozenset({"gradients"}), max_techniques=2)) if c.plan.gradients != Gradients()
    ]
    assert sorted(name for c in found for name in NAMES if name in {t.name for t in c.techniques}) == sorted(NAMES)
    for choice in found:
        assert choice.alters
        assert choice.plan.sharding.strategy == "ddp"
        check(choice.plan)


def test_one_way_by_its_name():
    found = {c.plan.gradients for c in choices(scope(allow=frozenset({"powersgd"})))}
    assert found == {Gradients(), Gradients(compression="powersgd", rank=4)}
