"""However ranks split the matrices, losses, gradients and weights are those of one rank."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import distributed

from tests.laws.gloo import run_ranks, train_alone
from tests.laws.programs.tensor_plans import PLANS, build, loss_of

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""Sums over ranks are in another order than one product's."""
WAYS = [(ranks, way) for ranks, plans in PLANS.items() for way in plans]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What as many real processes made of each plan, by their number."""

    @cache
    def of(ranks):
        return run_ranks("tensor_work.py", ranks, tmp_path_factory.mktemp("ranks"))[0]

    return of


@cache
def alone(kind):
    """The same steps by one rank, with no plan."""
    return train_alone(*build(kind), loss_of)


@pytest.mark.parametrize(("ranks", "way"), WAYS)
def test_ranks_train_as_one(ranks, way, shared):
    # GIVEN ranks that hold parts of the matrices, and replicas of them that share the batch
    if way.startswith("hf"):
        pytest.importorskip("transformers")
    found, wanted = shared(ranks)[way], alone(way.split(",")[0])
    assert not isinstance(found, str), found
    # THEN losses, gradients and weights after some steps of AdamW are those of one, under the same names
    torch.testing.assert_close(found["losses"], wanted["losses"], **NEAR)
    torch.testing.assert_close(found["grads"], wanted["grads"], **NEAR)
    torch.testing.assert_close(found["weights"], wanted["weights"], rtol=1e-3, atol=1e-3)
