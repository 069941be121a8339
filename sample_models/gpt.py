"""A decoder-only language model: GPT-2 small by default (Radford et al. 2019), its output tied to its token embedding.

It shows scaled dot-product attention, tied weights, activation checkpointing by one argument, and AdamW with two states
for each parameter. The logits, (batch, seq_len, vocab), are often the largest tensor of the step.

    dnnmem profile sample_models/gpt.py --batch 8 --seq 1024
    dnnmem profile sample_models/gpt.py --batch 8 --arg checkpointing=true
    dnnmem profile sample_models/gpt.py --batch 8 --arg layers=24 --arg width=1024 --arg heads=16
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Causal self-attention: (B, T, D) to (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        """Args: `width` D, and `heads`, which divides it."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend to this token and those before it."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and a two-layer perceptron, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        """Args: `width` D, and `heads`, which divides it."""
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block, (B, T, D) to (B, T, D)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Tokens (B, T) to logits (B, T, V)."""

    def __init__(self, *, vocab: int, context: int, width: int, layers: int, heads: int, checkpointing: bool) -> None:
        """Args: sizes as in `make_model`."""
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.checkpointing = checkpointing

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token at each position."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def make_model(
    *,
    vocab: int = 50257,
    context: int = 1024,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    checkpointing: bool = False,
) -> nn.Module:
    """GPT of any size; `context` is the longest sequence, `checkpointing` recomputes blocks in the backward pass."""
    return GPT(vocab=vocab, context=context, width=width, layers=layers, heads=heads, checkpointing=checkpointing)


def make_batch(batch_size: int = 8, seq_len: int = 1024, vocab: int = 50257) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the tokens that follow them, both (batch, seq_len)."""
    text = torch.randint(vocab, (batch_size, seq_len + 1))
    return text[:, :-1], text[:, 1:]


def make_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of the next token."""
    return functional.cross_entropy(output.flatten(0, 1), batch[1].flatten())


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 6e-4) -> torch.optim.Optimizer:
    """AdamW as for GPT-3: two states, the moments, for each parameter."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
