"""A language model with a mixture of experts: each token visits two of eight (GShard, 2020, arXiv 2006.16668).

It shows parameters that most tokens do not use, a second term of the loss, and a `train_step` of its own that clips
gradients. Every expert has room for a fixed number of tokens, so all shapes are known beforehand; tokens beyond the
capacity skip the layer by its residual connection.

    choices (2N,) --cumsum--> place in the expert's queue --scatter--> (experts, capacity, D) --two bmm--> back by index

    dnnmem profile sample_models/moe.py --batch 8 --seq 512 --arg experts=16
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

import torch
from torch import nn
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]

TOP = 2
"""Experts that each token visits."""
BALANCE_WEIGHT = 0.01
"""Weight of the balance term in the loss (Fedus et al. 2021, arXiv 2101.03961)."""


class Experts(nn.Module):
    """Token-choice top-2 routing over two-layer perceptrons: (N, D) to (N, D) and a scalar of imbalance."""

    def __init__(self, width: int, hidden: int, experts: int, capacity_factor: float) -> None:
        """Args: `width` D; each expert takes `capacity_factor` times its fair share of tokens."""
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.w_in = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.w_out = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.experts, self.capacity_factor = experts, capacity_factor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the experts add to each token, and the imbalance, 1 if all experts are used alike."""
        probability = self.router(x).softmax(-1)
        weight, choice = probability.topk(TOP)
        weight = weight / weight.sum(-1, keepdim=True)
        chosen = choice.flatten()[:, None] == torch.arange(self.experts, device=x.device)
        slot, kept = self._slots(choice.flatten(), chosen)
        room = self._capacity(len(x)) * self.experts
        # One slot more than there is room for takes the tokens that are dropped.
        queue = x.new_zeros(room + 1, x.shape[-1]).index_add(0, slot, x.repeat_interleave(TOP, dim=0))
        hidden = functional.gelu(torch.bmm(queue[:room].unflatten(0, (self.experts, -1)), self.w_in))
        answer = torch.bmm(hidden, self.w_out).flatten(0, 1)
        answer = answer[slot.clamp(max=room - 1)] * (weight.flatten() * kept)[:, None]
        imbalance = self.experts * (chosen.float().mean(0) * probability.mean(0)).sum()
        return answer.unflatten(0, (-1, TOP)).sum(1), imbalance

    def _capacity(self, tokens: int) -> int:
        return ceil(self.capacity_factor * TOP * tokens / self.experts)

    def _slots(self, choice: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        capacity = self._capacity(len(choice) // TOP)
        place = (chosen.cumsum(0) * chosen).sum(-1) - 1
        kept = place < capacity
        return torch.where(kept, choice * capacity + place, self.experts * capacity), kept


class Block(nn.Module):
    """Causal attention, then experts, each added to its input."""

    def __init__(self, width: int, heads: int, hidden: int, experts: int, capacity_factor: float) -> None:
        """Args: sizes as in `make_model`."""
        super().__init__()
        self.heads = heads
        self.attention_norm, self.experts_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.experts = Experts(width, hidden, experts, capacity_factor)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, D) to (B, T, D), and the imbalance of the experts."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        answer, imbalance = self.experts(self.experts_norm(x).flatten(0, 1))
        return x + answer.view_as(x), imbalance


class MoE(nn.Module):
    """Tokens (B, T) to logits (B, T, V), and the mean imbalance of the layers."""

    def __init__(
        self, *, vocab: int, width: int, layers: int, heads: int, experts: int, capacity_factor: float
    ) -> None:
        """Args: sizes as in `make_model`."""
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        blocks = (Block(width, heads, 4 * width, experts, capacity_factor) for _ in range(layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the next token at each position, and the imbalance."""
        x, imbalances = self.tokens(tokens), []
        for block in self.blocks:
            x, imbalance = block(x)
            imbalances.append(imbalance)
        return self.head(self.norm(x)), torch.stack(imbalances).mean()


def make_model(
    *,
    vocab: int = 32000,
    width: int = 512,
    layers: int = 8,
    heads: int = 8,
    experts: int = 8,
    capacity_factor: float = 1.25,
) -> nn.Module:
    """A decoder whose perceptrons are `experts` of 4 `width` hidden units."""
    return MoE(vocab=vocab, width=width, layers=layers, heads=heads, experts=experts, capacity_factor=capacity_factor)


def make_batch(batch_size: int = 8, seq_len: int = 512, vocab: int = 32000) -> Batch:
    """Tokens and the tokens that follow them, both (batch, seq_len)."""
    text = torch.randint(vocab, (batch_size, seq_len + 1))
    return text[:, :-1], text[:, 1:]


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 1e-4) -> torch.optim.Optimizer:
    """AdamW over all experts, whether tokens came or not."""
    return torch.optim.AdamW(parameters, lr=lr)


def train_step(model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One step on cross entropy and imbalance, with gradients clipped to norm 1."""
    tokens, labels = batch
    logits, imbalance = model(tokens)
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) + BALANCE_WEIGHT * imbalance
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss
