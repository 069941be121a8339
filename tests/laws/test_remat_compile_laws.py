"""Recomputation under torch.compile: a compiled model computes again what its plan says, and its gradients stay.

The compiler's own backend is slow on a CPU; `aot_eager` traces both passes as it does, and runs their ops one by one.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from dnnmem.estimator.plan import Plan, Remat
from dnnmem.profilers.apply.remat import to_model

PLANS = {
    "full": Remat(policy="full"),
    "segments": Remat(policy="segments", segments="0-1"),
    "selective": Remat(policy="selective"),
    "ops": Remat(policy="ops", keep="addmm.0"),
    "all that takes long": Remat(policy="ops", keep="products"),
}


class Block(nn.Module):
    """Two products, a norm and a residual."""

    def __init__(self, width=16):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    """Blocks, and something around them."""

    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Linear(16, 16), nn.Linear(16, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.enter(x).relu()
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def grads(model):
    x = torch.linspace(-1, 1, 64).reshape(4, 16)
    loss = model(x).square().mean()
    loss.backward()
    found = [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    return found


@pytest.mark.parametrize("way", PLANS)
def test_gradients_of_a_compiled_model_are_equal(way):
    # GIVEN a model, and the same with parts computed again, then compiled
    torch.manual_seed(0)
    plain = Model()
    again = to_model(deepcopy(plain), Plan(remat=PLANS[way]))
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(again, backend="aot_eager")
    # THEN gradients are those of the plain step, twice
    wanted = grads(plain)
    for _ in range(2):
        torch.testing.assert_close(grads(compiled), wanted, rtol=1e-5, atol=1e-6)
    # AND the compiler made whole blocks its own; runs, and blocks that keep some ops, go op by op
    assert (counters["stats"]["unique_graphs"] > 0) == (way in ("full", "segments"))
