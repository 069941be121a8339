"""No replicas are offered where PyTorch's would wait for a gradient that never comes."""

from __future__ import annotations

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.techniques import Scope, choices


@pytest.mark.parametrize(
    ("unreached", "strategies"), [(False, {"ddp", "zero1", "zero2", "zero3"}), (True, {"zero2", "zero3"})]
)
def test_replicas_only_where_a_gradient_reaches_each_parameter(unreached, strategies):
    scope = Scope(
        cluster=find_cluster("h100-sxm-80gb:8"), gpus=(8,), global_batch=8, micro_batches=(1,), blocks=0,
        fields=frozenset(), unreached=unreached,
    )  # fmt: skip
    assert {choice.plan.sharding.strategy for choice in choices(scope)} == strategies
