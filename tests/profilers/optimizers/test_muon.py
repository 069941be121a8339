"""Muon against torch's own, AdamW for the rest."""

from __future__ import annotations

import pytest
import torch

from dnnmem.profilers.optimizers.muon import Muon, orthogonal
from tests.profilers.optimizers.by_hand import check, stepped

MATRICES, OTHERS = ((6, 4), (3, 5)), ((7, 2), (4, 2, 3), (5,))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_matrices_move_as_torchs_muon_moves_them():
    options = {"lr": 0.02, "weight_decay": 0.1}
    found = stepped(lambda params: Muon([{"params": params, "hidden": True}], **options), MATRICES, dtype=torch.float32)
    wanted = stepped(
        lambda params: torch.optim.Muon(params, adjust_lr_fn="match_rms_adamw", **options),
        MATRICES,
        dtype=torch.float32,
    )
    check(found, wanted)


def test_other_parameters_are_adamws():
    options = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    found = stepped(lambda params: Muon(params, **options), OTHERS)
    check(found, stepped(lambda params: torch.optim.AdamW(params, **options), OTHERS))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)])
def test_an_update_is_about_orthogonal(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = torch.linalg.svdvals(orthogonal(matrix).float())
    assert found.min() > 0.5
    assert found.max() < 1.3
