"""GaLore against algorithm 2 of its paper, AdamW for the rest."""

from __future__ import annotations

import pytest
import torch

from dnnmem.profilers.optimizers.galore import GaLore
from tests.profilers.optimizers.by_hand import check, expected, stepped

MATRICES = ((6, 4), (3, 5))


@pytest.mark.parametrize("rank", [2, 3])
def test_steps_are_the_papers(rank):
    def update(w, g, states, t):
        wide = g.shape[0] <= g.shape[1]
        if t % 2 == 1:
            left, _, right = torch.linalg.svd(g, full_matrices=False)
            states["p"] = left[:, :rank] if wide else right[:rank].T
        p = states["p"]
        low = p.T @ g if wide else g @ p
        m = states["m"] = 0.9 * states.get("m", 0) + 0.1 * low
        v = states["v"] = 0.999 * states.get("v", 0) + 0.001 * low * low
        step = 0.1 * 0.25 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        update = m / (v.sqrt() + 1e-8)
        return w * (1 - 0.1 * 0.2) - step * (p @ update if wide else update @ p.T)

    def make(params):
        return GaLore([{"params": params, "hidden": True}], lr=0.1, weight_decay=0.2, rank=rank, every=2)

    check(stepped(make, MATRICES, steps=2), expected(update, MATRICES, steps=2), rtol=1e-6)


def test_states_of_a_matrix_have_a_low_rank():
    w = torch.nn.Parameter(torch.randn(64, 256))
    optimizer = GaLore([{"params": [w], "hidden": True}], rank=8)
    w.grad = torch.randn(64, 256)
    optimizer.step()
    assert {name: tuple(s.shape) for name, s in optimizer.state[w].items()} == {
        "step": (), "projection": (64, 8), "exp_avg": (8, 256), "exp_avg_sq": (8, 256),
    }  # fmt: skip


def test_other_parameters_are_adamws():
    found = stepped(lambda params: GaLore(params, lr=0.02, weight_decay=0.1))
    check(found, stepped(lambda params: torch.optim.AdamW(params, lr=0.02, weight_decay=0.1)))
