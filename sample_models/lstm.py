"""A recurrent language model: layers of LSTM over word embeddings, as in Zaremba et al. (2014), medium by default.

It shows cuDNN's recurrent layers: one call for all layers and steps, weights in one block, and a reserve that keeps the
gates of every step for the backward pass. No list of blocks: nothing of it can be computed again block by block.

    dnnmem profile sample_models/lstm.py --batch 64 --seq 128
    dnnmem profile sample_models/lstm.py --arg layers=4 --arg width=1024 --arg tied=true
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional


class LSTM(nn.Module):
    """Tokens (B, T) to logits (B, T, V)."""

    def __init__(self, vocab: int, width: int, layers: int, dropout: float, *, tied: bool) -> None:
        """Args: sizes as in `make_model`."""
        super().__init__()
        self.tokens, self.dropout = nn.Embedding(vocab, width), nn.Dropout(dropout)
        self.recurrent = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(width, vocab)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token at each position, from states of zeros."""
        x, _ = self.recurrent(self.dropout(self.tokens(tokens)))
        logits: torch.Tensor = self.head(self.dropout(x))
        return logits


def make_model(
    *, vocab: int = 10000, width: int = 650, layers: int = 2, dropout: float = 0.5, tied: bool = False
) -> nn.Module:
    """An LSTM of any size; `tied` shares one matrix between embedding and output."""
    return LSTM(vocab, width, layers, dropout, tied=tied)


def make_batch(batch_size: int = 64, seq_len: int = 128, vocab: int = 10000) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the tokens that follow them, both (batch, seq_len)."""
    text = torch.randint(vocab, (batch_size, seq_len + 1))
    return text[:, :-1], text[:, 1:]


def make_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of the next token."""
    return functional.cross_entropy(output.flatten(0, 1), batch[1].flatten())


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> torch.optim.Optimizer:
    """Adam: two states, the moments, for each parameter."""
    return torch.optim.Adam(parameters, lr=lr)
