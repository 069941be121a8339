"""SOAP against algorithm 3 of its paper."""

from __future__ import annotations

import pytest
import torch

from dnnmem.profilers.optimizers.soap import Soap
from tests.profilers.optimizers.by_hand import check, expected, stepped

B1, B2 = 0.9, 0.95


def adam(w, g, states, t):
    states["m"] = B1 * states.get("m", 0) + (1 - B1) * g
    states["v"] = B2 * states.get("v", 0) + (1 - B2) * g * g
    root = states["v"].sqrt() + 1e-8
    return 0.9 * w - 0.1 * (1 - B2**t) ** 0.5 / (1 - B1**t) * states["m"] / root  # decay 1, lr 0.1


@pytest.mark.parametrize("steps", [2, 4])
def test_steps_are_the_papers(steps):
    def update(w, g, states, t):
        if g.ndim == 1:
            return adam(w, g, states, t)
        g2 = g.reshape(g.shape[0], -1)
        products = {"l": g2 @ g2.T, "r": g2.T @ g2}
        if t == 1:  # bases alone
            for name, product in products.items():
                states[name] = (1 - B2) * product
                states[f"q{name}"] = torch.linalg.eigh(states[name])[1].flip(1)
            states["m"] = states["v"] = torch.zeros_like(g2)
            return w
        left, right = states["ql"], states["qr"]
        states["m"] = B1 * states["m"] + (1 - B1) * g2
        states["v"] = B2 * states["v"] + (1 - B2) * (left.T @ g2 @ right) ** 2
        turned = left.T @ states["m"] @ right / (states["v"].sqrt() + 1e-8)
        step = 0.1 * (1 - B2 ** (t - 1)) ** 0.5 / (1 - B1 ** (t - 1))
        w = 0.9 * w - step * (left @ turned @ right.T).reshape(w.shape)
        for axis, (name, product) in enumerate(products.items()):
            states[name] = B2 * states[name] + (1 - B2) * product
            if t % 2 == 0:
                basis = states[f"q{name}"]
                order = torch.argsort((basis.T @ states[name] @ basis).diag(), descending=True)
                states["v"] = states["v"].index_select(axis, order)
                states[f"q{name}"] = torch.linalg.qr(states[name] @ basis[:, order])[0]
        return w

    found = stepped(lambda params: Soap(params, lr=0.1, betas=(B1, B2), weight_decay=1, every=2), steps=steps)
    check(found, expected(update, steps=steps), rtol=1e-6)
