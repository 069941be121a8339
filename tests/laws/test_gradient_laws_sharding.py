"""However ranks share the work, losses, gradients and weights are those of one rank with the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from tests.laws.gloo import run_ranks, train_alone
from tests.laws.programs.shared_plans import PLANS, STEPS, build, loss_of

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
RANKS = 2
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""Sums over ranks are in another order than sums over a batch."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two real processes made of each plan."""
    return run_ranks("shared_work.py", RANKS, tmp_path_factory.mktemp("ranks"))[0]


@pytest.fixture(scope="module")
def alone():
    """The same steps by one rank, with no plan."""
    model, optimizer, batches = build()
    told = train_alone(model, optimizer, batches[:STEPS], loss_of)
    return {**told, "weights": {name: t.clone() for name, t in model.state_dict().items()}}


@pytest.mark.parametrize("way", [way for way in PLANS if "float16" not in way])
def test_ranks_train_as_one(way, shared, alone):
    # GIVEN two ranks, each with half of every batch  THEN their mean loss is that of the whole batch
    found = shared[way]
    torch.testing.assert_close(found["losses"], alone["losses"], **NEAR)
    # AND so are the gradients, and the weights after some steps of AdamW, under the names that the model has
    assert list(found["weights"]) == list(alone["weights"])
    torch.testing.assert_close(found["grads"], alone["grads"], **NEAR)
    torch.testing.assert_close(found["weights"], alone["weights"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3"])
def test_gradients_in_float16_are_scaled_back(strategy, shared, alone):
    # GIVEN two ranks in float16  THEN losses and gradients are near those of float32
    found = shared[f"{strategy}, float16"]
    torch.testing.assert_close(found["losses"], alone["losses"], rtol=2**-9, atol=0.0)
    torch.testing.assert_close(found["grads"], alone["grads"], rtol=2**-5, atol=2**-9)


def test_nothing_changes_where_owners_update_on_the_host(shared):
    torch.testing.assert_close(
        shared["zero1, float16, updated on the host"], shared["zero1, float16"], rtol=0.0, atol=0.0
    )


def test_owners_update_masters_of_what_is_theirs(shared):
    # GIVEN masters on each rank, and masters on the ranks that own what they are of  THEN weights end up the same
    owned, everywhere = shared["zero1, bfloat16 with masters"], shared["ddp, bfloat16 with masters"]
    torch.testing.assert_close(owned, everywhere, rtol=0.0, atol=0.0)
