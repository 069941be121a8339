"""Transformers on text of 12 tokens: encoders, decoders, both, with every kind of attention."""

from __future__ import annotations

from functools import partial
from math import ceil

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.models.entry import Entry

VOCAB, LENGTH, WIDTH, HEADS = 61, 12, 32, 4


def text(batch_size):
    """Tokens and those that follow them."""
    tokens = torch.randint(VOCAB, (batch_size, LENGTH + 1))
    return tokens[:, :-1], tokens[:, 1:]


def padded_text(batch_size):
    """Tokens, True where they are padding, and labels."""
    lengths = LENGTH - torch.arange(batch_size) % (LENGTH // 2)
    padding = torch.arange(LENGTH) >= lengths[:, None]
    return torch.randint(VOCAB, (batch_size, LENGTH)), padding, torch.randint(VOCAB, (batch_size, LENGTH))


def pairs(batch_size):
    """Source tokens, target tokens, and those that follow them."""
    source, target = torch.randint(VOCAB, (batch_size, LENGTH)), torch.randint(VOCAB, (batch_size, LENGTH // 2 + 1))
    return source, target[:, :-1], target[:, 1:]


def next_token(model, batch):
    *inputs, labels = batch
    return functional.cross_entropy(model(*inputs).flatten(0, 1), labels.flatten())


def with_balance(model, batch):
    logits, balance = model(batch[0])
    return functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten()) + 0.01 * balance


def rotate(x, angles):
    """RoPE: pairs of channels turned by their position."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1).to(x.dtype)


def by_hand(q, k, v, bias=None, *, is_causal=False):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    if is_causal:
        later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return functional.dropout(scores.softmax(-1), 0.1) @ v


class Attention(nn.Module):
    def __init__(self, *, kv_heads=HEADS, causal=False, rope=False, kernel=functional.scaled_dot_product_attention):
        super().__init__()
        size = WIDTH // HEADS
        self.q, self.out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, kv_heads * size, bias=False) for _ in "kv")
        self.kv_heads, self.causal, self.rope, self.kernel = kv_heads, causal, rope, kernel

    def forward(self, x, memory=None, bias=None):
        memory = x if memory is None else memory
        q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k = self.k(memory).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.v(memory).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        if self.rope:
            size = q.shape[-1] // 2
            frequency = 10000 ** (-torch.arange(size, device=x.device) / size)
            angles = torch.arange(x.shape[1], device=x.device)[:, None] * frequency
            q, k = rotate(q, angles), rotate(k, angles)
        k, v = (t.repeat_interleave(HEADS // self.kv_heads, dim=1) for t in (k, v))
        return self.out(self.kernel(q, k, v, bias, is_causal=self.causal).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x):
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def gelu_mlp():
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH), nn.Dropout(0.1))


class Block(nn.Module):
    def __init__(self, *, norm=nn.LayerNorm, mlp=gelu_mlp, **attention):
        super().__init__()
        self.attention_norm, self.mlp_norm = norm(WIDTH), norm(WIDTH)
        self.attention, self.mlp = Attention(**attention), mlp()

    def forward(self, x, bias=None):
        x = x + self.attention(self.attention_norm(x), bias=bias)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Tokens to logits; `run` says how a block is called."""

    def __init__(self, *, tied=False, positions=True, run=lambda block, x: block(x), norm=nn.LayerNorm, **block):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH) if positions else None
        self.blocks = nn.ModuleList(Block(causal=True, norm=norm, **block) for _ in range(2))
        self.norm, self.head, self.run = norm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False), run
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(self.norm(x))


class Bert(nn.Module):
    """An encoder with post-norm, dropout and a padding mask."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(0.1)
        layer = {"dim_feedforward": 64, "dropout": 0.1, "activation": "gelu", "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, HEADS, **layer) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB))

    def forward(self, tokens, padding):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.norm(self.tokens(tokens) + self.positions(places)))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return self.head(x)


class RelativeBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, HEADS)

    def forward(self, length, device):
        places = torch.arange(length, device=device)
        return self.table((places[None] - places[:, None]).clamp(-4, 4) + 4).permute(2, 0, 1)[None]


class CrossBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(3))
        self.own, self.cross, self.mlp = Attention(causal=True, kernel=by_hand), Attention(kernel=by_hand), SwiGLU()

    def forward(self, x, memory, bias):
        x = x + self.own(self.norms[0](x), bias=bias)
        x = x + self.cross(self.norms[1](x), memory)
        return x + self.mlp(self.norms[2](x))


class T5(nn.Module):
    """Encoder and decoder over one embedding, with a learnt bias by distance."""

    def __init__(self):
        super().__init__()
        self.tokens, self.encoder_bias, self.decoder_bias = nn.Embedding(VOCAB, WIDTH), RelativeBias(), RelativeBias()
        self.encoder = nn.ModuleList(Block(norm=nn.RMSNorm, mlp=SwiGLU, kernel=by_hand) for _ in range(2))
        self.decoder = nn.ModuleList(CrossBlock() for _ in range(2))
        self.norm = nn.RMSNorm(WIDTH)

    def forward(self, source, target):
        memory, bias = self.tokens(source), self.encoder_bias(source.shape[1], source.device)
        for block in self.encoder:
            memory = block(memory, bias)
        x, bias = self.tokens(target), self.decoder_bias(target.shape[1], target.device)
        for block in self.decoder:
            x = block(x, memory, bias)
        return functional.linear(self.norm(x) * WIDTH**-0.5, self.tokens.weight)


class Experts(nn.Module):
    """Token-choice top-2 routing with a fixed capacity, so that every shape is known."""

    def __init__(self, count=4):
        super().__init__()
        self.router = nn.Linear(WIDTH, count, bias=False)
        self.w_in, self.w_out = (nn.Parameter(torch.randn(count, WIDTH, WIDTH) * 0.1) for _ in range(2))

    def forward(self, x):
        count, capacity = len(self.w_in), ceil(1.25 * 2 * len(x) / len(self.w_in))
        probability = self.router(x).softmax(-1)
        weight, choice = probability.topk(2)
        chosen = choice.flatten()[:, None] == torch.arange(count, device=x.device)
        place = (chosen.cumsum(0) * chosen).sum(-1) - 1
        kept = place < capacity
        slot = torch.where(kept, choice.flatten() * capacity + place, count * capacity)
        queue = x.new_zeros(count * capacity + 1, WIDTH).index_add(0, slot, x.repeat_interleave(2, dim=0))
        hidden = functional.gelu(torch.bmm(queue[:-1].unflatten(0, (count, capacity)), self.w_in))
        answer = functional.pad(torch.bmm(hidden, self.w_out).flatten(0, 1), (0, 0, 0, 1))[slot]
        answer = (answer * (weight.flatten() * kept)[:, None]).unflatten(0, (-1, 2)).sum(1)
        return answer, count * (chosen.float().mean(0) * probability.mean(0)).sum()


class MoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.attention = nn.Embedding(VOCAB, WIDTH), Attention(causal=True, rope=True)
        self.attention_norm, self.experts_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.experts, self.head = Experts(), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens)
        x = x + self.attention(self.attention_norm(x))
        answer, balance = self.experts(self.experts_norm(x).flatten(0, 1))
        return self.head(x + answer.view_as(x)), balance


def language_model(make_model, **options):
    return Entry(make_model=make_model, **{"make_batch": text, "forward_loss": next_token, **options})


llama = partial(Decoder, positions=False, norm=nn.RMSNorm, mlp=SwiGLU, kv_heads=2, rope=True)

LANGUAGE = {
    "gpt": language_model(Decoder),
    "tied_lm": language_model(partial(Decoder, tied=True)),
    "llama": language_model(partial(llama)),
    "attention_by_hand": language_model(partial(Decoder, kernel=by_hand)),
    "checkpoint_reentrant": language_model(partial(Decoder, run=partial(checkpoint, use_reentrant=True))),
    "checkpoint_nonreentrant": language_model(partial(llama, run=partial(checkpoint, use_reentrant=False))),
    "bert": language_model(Bert, make_batch=padded_text),
    "t5": language_model(T5, make_batch=pairs),
    "moe": language_model(MoE, forward_loss=with_balance),
}
