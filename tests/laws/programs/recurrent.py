"""Networks that call a cell for each time step: one of torch's, one of their own, one that is written out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

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


class Gated(nn.Module):
    """A cell of its own, whose outputs are all read in the end."""

    def __init__(self):
        super().__init__()
        self.enter, self.state, self.gate = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, h):
        a = self.enter(x) + self.state(h)
        return self.norm(torch.tanh(a) * torch.sigmoid(self.gate(a)) + h)


class Labels(nn.Module):
    """A label for each step."""

    def __init__(self):
        super().__init__()
        self.tokens, self.cell = nn.Embedding(VOCAB, WIDTH), Gated()
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens):
        x = self.tokens(tokens)
        h = torch.zeros(len(x), WIDTH, device=x.device)
        states = [h := self.cell(x[:, t], h) for t in range(x.shape[1])]
        return self.head(torch.stack(states)).mean(0)


MODELS = {"lstm": Lstm, "tanh": Tanh, "labels": Labels}


def make_model(cell="lstm"):
    """For a target that is a file."""
    return MODELS[cell]()


def make_batch(batch_size=BATCH):
    return torch.randint(VOCAB, (batch_size, STEPS)), torch.randint(VOCAB, (batch_size,))


def make_loss(out, batch):
    return functional.cross_entropy(out, batch[1])


def make_optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.1)
