"""Recorded steps of networks whose branches meet."""

from __future__ import annotations

from functools import cache

import torch

from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from tests.laws.programs.branches import BATCH, Joined, make_batch, make_loss
from tests.profilers.recorded import loss_step, target_of


@cache
def joined(*, shared):
    """One training step on an H100."""
    target = target_of(
        lambda: Joined(shared=shared),
        make_batch,
        loss_step(lambda model, batch: make_loss(model(batch[0]), batch)),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=BATCH,
    )
    return profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]
