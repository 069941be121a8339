"""A recorded step with experts for passes: one small layer in the form of transformers', on FakeTensors.

tokens (TOKENS, WIDTH) -- gate --> chosen, weights (TOKENS, CHOICES) -- experts --> (TOKENS, WIDTH)
"""

from __future__ import annotations

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

    def __init__(self):
        super().__init__()
        self.num_experts = EXPERTS
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))

    def forward(self, tokens, chosen, weights):
        _, order = chosen.reshape(-1).sort()
        rows = tokens[order // chosen.shape[-1]]
        ends = torch.histc(chosen.reshape(-1).float(), self.num_experts, 0, self.num_experts - 1).cumsum(0).int()
        made = torch._grouped_mm(torch._grouped_mm(rows, self.up, offs=ends).relu(), self.down, offs=ends)
        made = made * weights.reshape(-1)[order, None]
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        return made[place].view(len(tokens), -1, WIDTH).sum(1)


class Layer(nn.Module):
    """Experts behind their router, between two linear layers."""

    def __init__(self):
        super().__init__()
        self.before, self.gate, self.after = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 4)
        self.experts = Experts()

    def forward(self, x):
        x = self.before(x)
        weights, chosen = self.gate(x).softmax(-1).topk(CHOICES)
        return self.after(x + self.experts(x, chosen, weights))


@cache
def mixture():
    """The step, with AdamW."""
    target = target_of(Layer, lambda _: torch.randn(TOKENS, WIDTH), loss_step(lambda model, x: model(x).mean()))
    return profile_fake(target, steps=3, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0].without_waits()
