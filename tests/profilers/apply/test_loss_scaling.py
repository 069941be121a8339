"""Loss scaling: what it scaled can go."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from dnnmem.estimator.plan import Plan, Precision
from dnnmem.profilers.apply import apply_to_model, apply_to_optimizer


def test_a_model_and_its_optimizer_go_when_nobody_uses_them():
    # GIVEN a model that computes in float16, and its optimizer
    plan = Plan(precision=Precision(compute="fp16_amp"))
    model = apply_to_model(nn.Linear(2, 2), plan)
    optimizer = apply_to_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, plan)
    alive = [weakref.ref(model), weakref.ref(optimizer)]
    # WHEN they are given up THEN nothing keeps them
    del model, optimizer
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
