"""LAMB and LARS against the algorithms of their papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.profilers.optimizers.layerwise import Lamb, Lars
from tests.profilers.optimizers.by_hand import check, expected, stepped


def test_lamb_takes_the_papers_steps():
    def update(w, g, states, t):
        m = states["m"] = 0.9 * states.get("m", 0) + 0.1 * g
        v = states["v"] = 0.999 * states.get("v", 0) + 0.001 * g * g
        r = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + 0.1 * w
        return w - 0.05 * (w.norm() / r.norm() if w.ndim > 1 else 1) * r

    check(stepped(lambda params: Lamb(params, lr=0.05, weight_decay=0.1)), expected(update))


def test_lars_takes_the_papers_steps():
    def update(w, g, states, _t):
        trust = 0.02 * w.norm() / (g.norm() + 0.1 * w.norm()) if w.ndim > 1 else 1
        states["b"] = 0.9 * states.get("b", 0) + 0.5 * trust * (g + 0.1 * w)
        return w - states["b"]

    check(stepped(lambda params: Lars(params, lr=0.5, weight_decay=0.1, trust=0.02)), expected(update))


@pytest.mark.parametrize("cls", [Lamb, Lars])
def test_weights_of_length_0_move(cls):
    # GIVEN a matrix of zeros, whose quotient would be 0
    w = nn.Parameter(torch.zeros(2, 2))
    w.grad = torch.ones(2, 2)
    cls([w], lr=0.5).step()
    # THEN it takes the plain length
    torch.testing.assert_close(w.detach(), torch.full((2, 2), -0.5), rtol=1e-4, atol=0)
