"""A model that checkpoints its own blocks is offered no rematerialization around it."""

from __future__ import annotations

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.techniques import Scope, choices


@pytest.mark.parametrize(("computes_again", "planned"), [(False, True), (True, False)])
def test_rematerialization_only_of_what_is_kept(computes_again, planned):
    scope = Scope(
        cluster=find_cluster("h100-sxm-80gb:1"), gpus=(1,), global_batch=8, micro_batches=(8,), blocks=8,
        fields=frozenset({"remat"}), computes_again=computes_again,
    )  # fmt: skip
    found = choices(scope)
    assert any(choice.plan.remat.policy != "none" for choice in found) is planned
    assert any(choice.planned_share for choice in found) is planned
