"""Recorded steps of networks that call a cell for each time step."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional

from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from tests.profilers.recorded import loss_step, target_of

STEPS, WIDTH, VOCAB, BATCH = 24, 256, 200, 128


class Lstm(nn.Module):
    """A cell of torch's."""

    def __init__(self):
        super().__init__()
        self.tokens, self.cell = nn.Embedding(VOCAB, WIDTH), nn.LSTMCell(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens):
        x = self.tokens(tokens)
        h = c = torch.zeros(len(x), WIDTH, device=x.device)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


class Tanh(nn.Module):
    """One that is written out, in several modules and in none."""

    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.enter, self.state, self.gate = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, tokens):
        x = self.tokens(tokens)
        h = torch.zeros(len(x), WIDTH, device=x.device)
        for t in range(x.shape[1]):
            a = self.enter(x[:, t]) + self.state(h)
            h = torch.tanh(a) * torch.sigmoid(self.gate(a))
        return self.head(h)


@cache
def unrolled(cell):
    """One training step."""
    target = target_of(
        {"lstm": Lstm, "tanh": Tanh}[cell],
        lambda size: (torch.randint(VOCAB, (size, STEPS)), torch.randint(VOCAB, (size,))),
        loss_step(lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1])),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=BATCH,
    )
    return profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]
