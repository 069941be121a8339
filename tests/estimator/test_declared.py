"""Models that declare normalisation in place, or reversible blocks, are flagged."""

from __future__ import annotations

import torch
from torch import nn

from dnnmem.estimator.declared import declared_notes
from dnnmem.estimator.trace import Module, Origin
from dnnmem.profilers.fake import profile_fake
from tests.profilers.recorded import loss_step, target_of


def modules(*types):
    return [Module(path=("layers", str(n)), type=kind) for n, kind in enumerate(types)]


def test_each_class_is_told_once():
    first, second = declared_notes(modules("InPlaceABN", "Conv2d", "InPlaceABN", "ReformerEncoder"))
    assert first.startswith("layers.0 and 1 more is a normalisation in place (InPlaceABN)")
    assert "reversible" in second
    assert declared_notes(modules("BatchNorm2d", "ReLU")) == ()


class InplaceAbn(nn.BatchNorm1d):
    """Named as timm's is."""


def test_a_recorded_step_says_so():
    # GIVEN a model with such a layer  WHEN its step is recorded
    target = target_of(
        lambda: nn.Sequential(nn.Linear(4, 4), InplaceAbn(4)),
        lambda size: torch.ones(size, 4),
        loss_step(lambda model, batch: model(batch).mean()),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=2,
    )
    trace = profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]
    # THEN its notes do
    assert any("normalisation in place" in note for note in trace.origin.notes)
