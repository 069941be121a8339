"""Shampoo against algorithm 1 of its paper."""

from __future__ import annotations

import pytest
import torch

from dnnmem.profilers.optimizers.shampoo import Shampoo
from tests.profilers.optimizers.by_hand import check, expected, stepped


def power(matrix, exponent):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


@pytest.mark.parametrize("every", [1, 2])
def test_steps_are_the_papers(every):
    def update(w, g, states, t):
        g2 = g.reshape(g.shape[0], -1) if g.ndim > 1 else g
        if g.ndim == 1:
            states["sum"] = states.get("sum", 0) + g * g
            return w - 0.1 * g / (states["sum"].sqrt() + 1e-4)
        for name, n, product in (("l", g2.shape[0], g2 @ g2.T), ("r", g2.shape[1], g2.T @ g2)):
            states[name] = states.get(name, 1e-4 * torch.eye(n, dtype=g.dtype)) + product
            if (t - 1) % every == 0:
                states[f"{name} root"] = power(states[name], -1 / 4)
        return w - 0.1 * (states["l root"] @ g2 @ states["r root"]).reshape(w.shape)

    check(stepped(lambda params: Shampoo(params, lr=0.1, every=every)), expected(update), rtol=1e-6)


def test_a_long_side_has_no_preconditioner():
    # GIVEN a matrix of 6 rows, where 5 are the most
    def update(w, g, states, _t):
        states["r"] = states.get("r", 1e-4 * torch.eye(4, dtype=g.dtype)) + g.T @ g
        return w - 0.1 * g @ power(states["r"], -1 / 2)

    found = stepped(lambda params: Shampoo(params, lr=0.1, every=1, longest=5), ((6, 4),))
    check(found, expected(update, ((6, 4),)), rtol=1e-6)
