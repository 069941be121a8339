"""A loss by chunks is searched only where it can gain something."""

from __future__ import annotations

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.plan import Mesh, Plan, Precision, Sharding
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.techniques import Scope
from dnnmem.estimator.techniques.loss import techniques


def scope(share):
    return Scope(
        cluster=find_cluster("h100-sxm-80gb:8"), gpus=(8,), global_batch=8, micro_batches=(1,), blocks=4,
        fields=frozenset(), logits_share=share,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("share", "plan", "name"),
    [
        (0.01, Plan(), None),
        (0.3, Plan(), "fused-loss"),
        (0.3, Plan(mesh=Mesh(dp_shard=8), sharding=Sharding(strategy="zero3")), "chunked-loss"),
        (0.3, Plan(mesh=Mesh(tp=2)), None),
        (0.3, Plan(precision=Precision(compute="fp16_amp")), None),
    ],
)
def test_it_is_offered_where_it_helps_and_can_be(share, plan, name):
    plain, *more = techniques(scope(share), plan)
    assert (plain.name, plain.settings) == ("", ())
    assert [technique.name for technique in more] == ([name] if name else [])
    for technique in more:
        change(plan, technique.settings)
        assert not technique.alters
