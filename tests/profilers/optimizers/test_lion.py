"""Lion against algorithm 2 of its paper."""

from __future__ import annotations

import torch

from dnnmem.profilers.optimizers.lion import Lion
from tests.profilers.optimizers.by_hand import check, expected, stepped


def test_steps_are_the_papers():
    def update(w, g, states, _t):
        m = states.get("m", torch.zeros_like(w))
        u = torch.sign(0.9 * m + 0.1 * g)
        states["m"] = 0.99 * m + 0.01 * g
        return w - 0.1 * (u + 0.2 * w)

    check(stepped(lambda params: Lion(params, lr=0.1, weight_decay=0.2)), expected(update))
