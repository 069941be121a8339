"""A recorded step with experts for passes: one small layer in the form of transformers', on FakeTensors.

tokens (TOKENS, WIDTH) -- gate --> chosen, weights (TOKENS, CHOICES) -- experts --> (TOKENS, WIDTH)
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import nn

from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from tests.profilers.recorded import loss_step, target_of

TOKENS, CHOICES, EXPERTS, WIDTH, HIDDEN = 32, 2, 8, 16, 24
ROWS = TOKENS * CHOICES


class Experts(nn.Module):
    """Two grouped products over rows in the order of experts."""

    def __init__(self, width=WIDTH, hidden=HIDDEN):
        super().__init__()
        self.num_experts = EXPERTS
        self.up = nn.Parameter(torch.randn(EXPERTS, width, hidden))
        self.down = nn.Parameter(torch.randn(EXPERTS, hidden, width))

    def forward(self, tokens, chosen, weights):
        _, order = chosen.reshape(-1).sort()
        rows = tokens[order // chosen.shape[-1]]
        ends = torch.histc(chosen.reshape(-1).float(), self.num_experts, 0, self.num_experts - 1).cumsum(0).int()
        made = torch._grouped_mm(torch._grouped_mm(rows, self.up, offs=ends).relu(), self.down, offs=ends)
        made = made * weights.reshape(-1)[order, None]
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        return made[place].view(*chosen.shape, -1).sum(1)


class Layer(nn.Module):
    """Experts behind their router, between two linear layers."""

    def __init__(self, width=WIDTH, hidden=HIDDEN, out=4):
        super().__init__()
        self.before, self.gate, self.after = nn.Linear(width, width), nn.Linear(width, EXPERTS), nn.Linear(width, out)
        self.experts = Experts(width, hidden)

    def forward(self, x):
        x = self.before(x)
        weights, chosen = self.gate(x).softmax(-1).topk(CHOICES)
        return self.after(x + self.experts(x, chosen, weights))


class Layers(nn.Module):
    """Such layers as blocks, and a head."""

    def __init__(self, count, width):
        super().__init__()
        self.blocks = nn.ModuleList(Layer(width, 2 * width, width) for _ in range(count))
        self.head = nn.Linear(width, width)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def _recorded(make_model, tokens, width):
    step = loss_step(lambda model, x: model(x).mean())
    target = target_of(make_model, lambda _: torch.randn(tokens, width), step)
    return profile_fake(target, steps=3, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0].without_waits()


@cache
def mixture():
    """The step, with AdamW."""
    return _recorded(Layer, TOKENS, WIDTH)


@cache
def mixtures(layers, tokens, width=256):
    """The same of a model that is a list of such layers, with tokens as samples."""
    made = _recorded(lambda: Layers(layers, width), tokens, width)
    return replace(made, batch={"batch_size": tokens})
