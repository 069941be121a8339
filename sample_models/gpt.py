"""A decoder-only language model: GPT-2 small by default (Radford et al. 2019), its output tied to its token embedding.

It shows scaled dot-product attention, tied weights, activation checkpointing by one argument, and AdamW with two states
for each parameter. The logits, (batch, seq_len, vocab), are often the largest tensor of the step.

    dnnmem profile sample_models/gpt.py --batch 8 --seq 1024
    dnnmem profile sample_models/gpt.py --batch 8 --arg checkpointing=true
    dnnmem profile sample_models/gpt.py --batch 8 --arg layers=24 --arg width=1024 --arg heads=16

Its arguments make most published decoders of it. Llama 3.1 8B (torchtitan), and Megatron's GPT before fused attention:

    ... --arg width=4096 --arg layers=32 --arg heads=32 --arg kv_heads=8 --arg ffn=14336 --arg vocab=128256
        --arg norm=rms --arg mlp=swiglu --arg positions=rope --arg bias=false --arg tied=false --arg dtype=bfloat16
    ... --arg attention=math --arg dropout=0.1 --arg vocab=51200 --arg dtype=float16
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Config(NamedTuple):
    """Sizes and kinds of the parts; see `make_model`."""

    vocab: int
    context: int
    width: int
    layers: int
    heads: int
    kv_heads: int | None
    head_dim: int
    ffn: int
    norm: str
    mlp: str
    positions: str
    attention: str
    qk_norm: bool
    dropout: float
    bias: bool
    tied: bool
    checkpointing: bool


def make_norm(config: Config, width: int) -> nn.Module:
    """LayerNorm or RMSNorm over the last `width` elements."""
    return nn.RMSNorm(width, eps=1e-5) if config.norm == "rms" else nn.LayerNorm(width, bias=config.bias)


def dropped(x: torch.Tensor, config: Config) -> torch.Tensor:
    """`x` after dropout, or itself where there is none."""
    return functional.dropout(x, config.dropout) if config.dropout else x


def rotate(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021) of (B, T, H, D), pairs of elements as complex numbers in float32."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(3).type_as(x)


def fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, config: Config) -> torch.Tensor:
    """One kernel that never writes the scores: (B, T, H, D) each, to (B, T, H * D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = functional.scaled_dot_product_attention(q, k, v, dropout_p=config.dropout, is_causal=True)
    return attended.transpose(1, 2).flatten(2)


def written_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, config: Config) -> torch.Tensor:
    """Scores, softmax and dropout as ops of their own, as before fused kernels: (T, B, H, D) each, to (T, B, H * D)."""
    tokens, batch, heads, head_dim = q.shape
    q, k, v = (x.flatten(1, 2).transpose(0, 1) for x in (q, k, v))
    scores = torch.empty(batch * heads, tokens, tokens, dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=head_dim**-0.5)
    if config.positions == "alibi":
        slopes = torch.logspace(-8 / heads, -8, heads, 2, dtype=q.dtype, device=q.device).repeat(batch)
        scores = scores + slopes[:, None, None] * torch.arange(1 - tokens, 1, dtype=q.dtype, device=q.device)
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    chances = dropped(scores.masked_fill(future, -1e4).softmax(-1), config)
    return (chances @ v).transpose(0, 1).reshape(tokens, batch, heads * head_dim)


class Attention(nn.Module):
    """Causal self-attention: (B, T, D) to (B, T, D), or with written scores (T, B, D) to (T, B, D)."""

    def __init__(self, config: Config) -> None:
        """One matrix for all heads, or with `kv_heads` one each for queries, keys and values."""
        super().__init__()
        self.config = config
        width, inner = config.width, config.heads * config.head_dim
        if config.kv_heads is None:
            self.qkv = nn.Linear(width, 3 * inner, bias=config.bias)
        else:
            self.q, self.k, self.v = (
                nn.Linear(width, heads * config.head_dim, bias=config.bias)
                for heads in (config.heads, config.kv_heads, config.kv_heads)
            )
        if config.qk_norm:
            self.q_norm, self.k_norm = make_norm(config, config.head_dim), make_norm(config, config.head_dim)
        self.out = nn.Linear(inner, width, bias=config.bias)

    def forward(self, x: torch.Tensor, rotations: torch.Tensor | None) -> torch.Tensor:
        """Attend to this token and those before it."""
        config = self.config
        if config.kv_heads is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, config.heads, config.head_dim)).unbind(-3)
        else:
            q, k, v = (project(x).unflatten(-1, (-1, config.head_dim)) for project in (self.q, self.k, self.v))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        if k.shape[2] < config.heads:
            k, v = (y.repeat_interleave(config.heads // y.shape[2], dim=2) for y in (k, v))
        attend = fused_attention if config.attention == "sdpa" else written_attention
        out: torch.Tensor = self.out(attend(q, k, v, config))
        return out


class SwiGLU(nn.Module):
    """Gated perceptron (Shazeer 2020): silu(x G) * (x U), times D."""

    def __init__(self, width: int, ffn: int, *, bias: bool) -> None:
        """Args: `width` outside and `ffn` inside."""
        super().__init__()
        self.gate, self.up = nn.Linear(width, ffn, bias=bias), nn.Linear(width, ffn, bias=bias)
        self.down = nn.Linear(ffn, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The perceptron at each position."""
        out: torch.Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """Attention and a perceptron, each normalised before and added to its input."""

    def __init__(self, config: Config) -> None:
        """Args: sizes as in `make_model`."""
        super().__init__()
        self.config = config
        width, ffn, bias = config.width, config.ffn, config.bias
        self.attention_norm, self.attention = make_norm(config, width), Attention(config)
        self.mlp_norm = make_norm(config, width)
        self.mlp: nn.Module = SwiGLU(width, ffn, bias=bias)
        if config.mlp == "gelu":
            up, down = nn.Linear(width, ffn, bias=bias), nn.Linear(ffn, width, bias=bias)
            self.mlp = nn.Sequential(up, nn.GELU("tanh"), down)

    def forward(self, x: torch.Tensor, rotations: torch.Tensor | None) -> torch.Tensor:
        """One block, the shape of `x` kept."""
        x = x + dropped(self.attention(self.attention_norm(x), rotations), self.config)
        return x + dropped(self.mlp(self.mlp_norm(x)), self.config)


class GPT(nn.Module):
    """Tokens (B, T) to logits (B, T, V)."""

    def __init__(self, config: Config) -> None:
        """Args: sizes as in `make_model`."""
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.width)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = make_norm(config, config.width)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)
        if config.positions == "rope":
            frequencies = 500_000.0 ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
            angles = torch.outer(torch.arange(config.context, dtype=torch.float32), frequencies)
            self.register_buffer("rotations", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token at each position."""
        x, time = self.tokens(tokens), tokens.shape[1]
        if self.config.positions == "learned":
            x = x + self.positions(torch.arange(time, device=tokens.device))
        written = self.config.attention == "math"  # time first, so that its batched products need no copies
        x = dropped(x.transpose(0, 1).contiguous() if written else x, self.config)
        rotations = None
        if self.config.positions == "rope":
            rotations = self.rotations[:time, None, None] if written else self.rotations[:time, None]
        for block in self.blocks:
            recomputed = self.config.checkpointing
            x = checkpoint(block, x, rotations, use_reentrant=False) if recomputed else block(x, rotations)
        x = self.norm(x)
        logits: torch.Tensor = self.head(x.transpose(0, 1) if written else x)
        return logits


def make_model(
    *,
    vocab: int = 50257,
    context: int = 1024,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    ffn: int | None = None,
    norm: Literal["layer", "rms"] = "layer",
    mlp: Literal["gelu", "swiglu"] = "gelu",
    positions: Literal["learned", "rope", "alibi", "none"] = "learned",
    attention: Literal["sdpa", "math"] = "sdpa",
    qk_norm: bool = False,
    dropout: float = 0.0,
    bias: bool = True,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> nn.Module:
    """GPT of any size; `context` is the longest sequence, `checkpointing` recomputes blocks in the backward pass.

    `kv_heads` heads of keys and values are shared by `heads` of queries, and each kind has a matrix of its own; by
    default one matrix makes all three. `head_dim` is width / heads, `ffn`, the perceptron's inside, 4 * width.
    ALiBi adds to written scores; a fused kernel adds it inside, where it leaves no trace.
    """
    config = Config(
        vocab=vocab, context=context, width=width, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim or width // heads, ffn=ffn or 4 * width, norm=norm, mlp=mlp, positions=positions,
        attention=attention, qk_norm=qk_norm, dropout=dropout, bias=bias, tied=tied, checkpointing=checkpointing,
    )  # fmt: skip
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return GPT(config)
    finally:
        torch.set_default_dtype(default)


def make_batch(batch_size: int = 8, seq_len: int = 1024, vocab: int = 50257) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the tokens that follow them, both (batch, seq_len)."""
    text = torch.randint(vocab, (batch_size, seq_len + 1))
    return text[:, :-1], text[:, 1:]


def make_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of the next token, in float32."""
    return functional.cross_entropy(output.flatten(0, 1).float(), batch[1].flatten())


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 6e-4) -> torch.optim.Optimizer:
    """AdamW as for GPT-3: two states, the moments, for each parameter."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
