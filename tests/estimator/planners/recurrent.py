"""Recorded steps of networks that call a cell for each time step."""

from __future__ import annotations

from functools import cache

from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from tests.laws.programs.recurrent import BATCH, MODELS, make_batch, make_loss, make_optimizer
from tests.profilers.recorded import loss_step, target_of


@cache
def unrolled(cell):
    """One training step."""
    target = target_of(
        MODELS[cell], make_batch, loss_step(lambda model, batch: make_loss(model(batch[0]), batch)), make_optimizer,
        batch_size=BATCH,
    )  # fmt: skip
    return profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]
