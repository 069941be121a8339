"""Before the block of all recurrent weights there was one for each, as a module's move to a GPU leaves it."""

from __future__ import annotations

import torch
from torch import nn

from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from tests.profilers.recorded import loss_step, target_of

WIDTH = 64
SIZES = [4 * WIDTH * WIDTH * 4, 4 * WIDTH * WIDTH * 4, 4 * WIDTH * 4, 4 * WIDTH * 4]


class Between(nn.Module):
    """Recurrent layers between two others."""

    def __init__(self, kind=torch.float32):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.layers = nn.LSTM(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to(kind)

    def forward(self, x):
        return self.last(self.layers(self.first(x.to(self.first.weight.dtype)))[0])


def setup(make_model):
    target = target_of(
        make_model,
        lambda batch: torch.randn(16, batch, WIDTH),
        loss_step(lambda model, x: model(x).float().pow(2).mean()),
    )
    trace = profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]
    trace.check()
    return [event.nbytes for event in trace.setup]


def test_weights_arrive_one_by_one_and_leave_together():
    # GIVEN a model whose second module is recurrent  WHEN it moves  THEN its weights do so between the others'
    linear = WIDTH * WIDTH * 4
    expected = [linear, *SIZES, sum(SIZES), *(-n for n in SIZES), linear]
    assert setup(Between)[: len(expected)] == expected


def test_weights_that_stay_apart_move_once():
    # GIVEN a type that torch does not put together  WHEN it moves  THEN nothing is freed
    linear = WIDTH * WIDTH * 2
    expected = [linear, *(n // 2 for n in SIZES), linear]
    assert setup(lambda: Between(torch.bfloat16))[: len(expected)] == expected
