"""A step of Lit-GPT's finetune/lora.py, adapter.py or adapter_v2.py at its longest text: its own model and loss.

`lit_gpt` is imported, so a checkout of the commit that the table names (8641822) is on PYTHONPATH. What the scripts do
is said here in few words: bfloat16 throughout, logits in parts of 128 tokens, AdamW over what learns. The first text of
a run is the longest, so that its step needs most.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from lit_gpt.utils import chunked_cross_entropy
from torch import nn

CHUNK = 128
LORA = {"r": 8, "alpha": 16, "dropout": 0.05, "to_query": True, "to_value": True}
FROZEN = {
    "lora": "mark_only_lora_as_trainable",
    "adapter": "mark_only_adapter_as_trainable",
    "adapter_v2": "mark_only_adapter_v2_as_trainable",
}


class WideNorm(nn.Module):
    """RMSNorm in float32, as Lit-GPT has it since 6178c7cc, of 24 October 2023."""

    def __init__(self, size: int, dim: int = -1, eps: float = 1e-5) -> None:
        """Args: as of Lit-GPT's."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.dim, self.eps = dim, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) to the same."""
        wide = x.float()
        normed = wide * torch.rsqrt((wide * wide).mean(self.dim, keepdim=True) + self.eps)
        return (self.weight * normed).to(x.dtype)


class InParts(nn.Module):
    """The model, asked for its logits in parts."""

    def __init__(self, model: nn.Module) -> None:
        """Args: `model` of Lit-GPT."""
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """(B, T) to (B, up to 128, V) each."""
        for block in self.model.transformer.h:
            block.attn.adapter_kv_cache = None  # the first step of a run has none
        return [part.float() for part in self.model(tokens, lm_head_chunk_size=CHUNK)]  # Fabric's bf16-true does so


def make_model(name: str = "phi-1_5", way: str = "lora", *, longest: int = 1044, wide_norm: bool = False) -> nn.Module:
    """Lit-GPT's model called `name`, of which only what `way` adds learns; RMSNorm in float32 with `wide_norm`."""
    parts: Any = import_module(f"lit_gpt.{way}")
    if wide_norm:
        import_module("lit_gpt.rmsnorm").RMSNorm = WideNorm
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = parts.GPT(parts.Config.from_name(name, **(LORA if way == "lora" else {})))
        model.max_seq_length = longest
    finally:
        torch.set_default_dtype(torch.float32)
    getattr(parts, FROZEN[way])(model)
    return InParts(model)


def make_batch(batch_size: int = 1, seq_len: int = 1044) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets, both (batch, seq_len)."""
    return torch.randint(100, (batch_size, seq_len)), torch.randint(100, (batch_size, seq_len))


def make_loss(output: list[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """As the scripts have it, at an accumulation of 128 samples."""
    output[-1] = output[-1][..., :-1, :]
    loss: torch.Tensor = chunked_cross_entropy(output, batch[1][..., 1:]) / (CHUNK // len(batch[1]))
    return loss


def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over what learns."""
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=3e-4, weight_decay=0.01)
