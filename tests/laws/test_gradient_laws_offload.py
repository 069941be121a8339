"""Wherever saved activations rest, loss and gradients are those of the plain step, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Offload, Plan, Remat
from dnnmem.profilers.apply.offload import to_model
from dnnmem.profilers.apply.remat import to_model as with_remat
from tests.laws.test_gradient_laws_remat import gpt, grads

PLANS = {
    "all": Plan(offload=Offload(activations="all", min_bytes=1)),
    "large ones": Plan(offload=Offload(activations="all", min_bytes=1 << 14)),
    "every second": Plan(offload=Offload(activations="every", every=2, min_bytes=1)),
    "inputs of blocks": Plan(offload=Offload(activations="all", min_bytes=1), remat=Remat(policy="full")),
}


@pytest.mark.parametrize("way", PLANS)
def test_gradients_are_equal(way):
    # GIVEN a model, and the same with its activations elsewhere
    torch.manual_seed(0)
    model, loss = gpt()
    names = list(model.state_dict())
    plain = [t.detach().clone() for t in grads(model, loss)]
    model.zero_grad()
    moved = to_model(with_remat(model, PLANS[way]), PLANS[way])
    # THEN nothing but memory and time differs, in the second step as well
    for _ in range(2):
        found = grads(moved, loss)
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
        model.zero_grad()
    assert list(moved.state_dict()) == names


def test_one_block_is_refused():
    with pytest.raises(UnsupportedError, match="finds 0 blocks in Linear"):
        to_model(nn.Linear(2, 2), PLANS["all"])
