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
    "files": Plan(offload=Offload(activations="all", min_bytes=1, files=True)),
    "inputs of some blocks in files": Plan(
        offload=Offload(activations="blocks", blocks="0-1", min_bytes=1, files=True),
        remat=Remat(policy="segments", segments="0,1-2(2)"),
    ),
    "large ones": Plan(offload=Offload(activations="all", min_bytes=1 << 14)),
    "every second": Plan(offload=Offload(activations="every", every=2, min_bytes=1)),
    "inputs of blocks": Plan(offload=Offload(activations="all", min_bytes=1), remat=Remat(policy="full")),
    "some blocks": Plan(offload=Offload(activations="blocks", blocks="0,2", min_bytes=1)),
    "sent, computed again, kept": Plan(
        offload=Offload(activations="blocks", blocks="0-1", min_bytes=1),
        remat=Remat(policy="segments", segments="1-2(2)"),
    ),
    "beside kept ops": Plan(offload=Offload(activations="all", min_bytes=1), remat=Remat(policy="selective")),
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


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_equal_where_inputs_of_convolutions_travel(frozen):
    # GIVEN convolutions with a shortcut, whose input is also what the activation before it saved
    torch.manual_seed(0)
    model, batch = Shortcut(), torch.randn(2, 3, 8, 8)
    model.first.weight.requires_grad = not frozen
    model.run(batch)
    plain = [p.grad for p in model.parameters()]
    model.zero_grad()
    moved = to_model(model, Plan(offload=Offload(activations="conv", min_bytes=1)))
    for _ in range(2):
        moved.run(batch)
        pairs = zip(plain, (p.grad for p in moved.parameters()), strict=True)
        assert all(torch.equal(a, b) if a is not None else b is None for a, b in pairs)
        model.zero_grad()


class Shortcut(nn.Module):
    """Three convolutions, two of the same input."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.long, self.short = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.long(x).relu() + self.short(x)

    def run(self, batch):
        """A step without its update."""
        self(batch).square().mean().backward()


@pytest.mark.parametrize(("plan", "words"), [("all", "sends nothing of a model with 0 blocks"), ("conv", "finds no")])
def test_a_model_with_nothing_to_send_is_refused(plan, words):
    with pytest.raises(UnsupportedError, match=words):
        to_model(nn.Linear(2, 2), Plan(offload=Offload(activations=plan)))
