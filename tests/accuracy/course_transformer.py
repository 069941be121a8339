"""The kind of model whose snapshots from real GPUs are in `data/histories`: a course's transformer, all by hand.

Attention by matrix products over a mask, norms and rotations by elementary operators, an AdamW that loops over the
parameters. Only the order of operators is told by the snapshots; widths are those of their sizes.
"""

from __future__ import annotations

import math

import torch
from torch import nn

BATCH, VOCAB = 4, 10_000


class Linear(nn.Module):
    """A product without bias."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).normal_(std=0.02))

    def forward(self, x):
        return torch.einsum("...i,oi->...o", x, self.weight)


class Norm(nn.Module):
    """Root mean square, in float32."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        kind, x = x.dtype, x.float()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        x = x * scale
        return (self.weight * x).to(kind)


def shares(x):
    """Softmax over the last dimension."""
    shifted = x - x.max(-1, keepdim=True)[0]
    powers = torch.exp(shifted)
    return powers / powers.sum(-1, keepdim=True)


class Turns(nn.Module):
    """Rotation of pairs of channels by their position."""

    def __init__(self, length, width):
        super().__init__()
        angles = torch.outer(torch.arange(length).float(), 1e4 ** -(torch.arange(0, width, 2) / width))
        self.register_buffer("turns", torch.stack((angles.cos(), angles.sin())), persistent=False)

    def forward(self, x):
        a, b = x.unflatten(-1, (-1, 2)).movedim(-1, 0).unbind(0)
        cos, sin = self.turns[:, : x.shape[-2]].unbind(0)
        first = cos * a - sin * b
        second = sin * a + cos * b
        return torch.cat((first, second), -1)


class Attention(nn.Module):
    """Causal, with rotated queries and keys."""

    def __init__(self, width, heads, turns):
        super().__init__()
        self.heads, self.turns = heads, turns
        self.q, self.k, self.v, self.out = (Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        q = self.turns(q)
        k = self.turns(k)
        places = torch.arange(x.shape[1], device=x.device)
        mask = (places[:, None] >= places)[None]
        mixed = attend(q, k, v, mask)
        mixed = mixed.transpose(1, 2).flatten(2).contiguous()
        return self.out(mixed)


def attend(q, k, v, mask):
    """Attention by products."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(k.shape[-1])
    scores = torch.where(mask, scores, float("-inf"))
    weights = shares(scores)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


class Gated(nn.Module):
    """The feed-forward part."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate, self.down, self.up = Linear(width, inner), Linear(inner, width), Linear(width, inner)

    def forward(self, x):
        return self.down(swish(self.gate(x)) * self.up(x))


def swish(x):
    """x sigmoid(x)."""
    return x * torch.sigmoid(x)


class Block(nn.Module):
    def __init__(self, width, heads, inner, turns):
        super().__init__()
        self.attention, self.feed = Attention(width, heads, turns), Gated(width, inner)
        self.before, self.between = Norm(width), Norm(width)

    def forward(self, x):
        added = self.attention(self.before(x))
        attended = x + added
        fed = self.feed(self.between(attended))
        return attended + fed


class Transformer(nn.Module):
    """`length` is the longest text."""

    def __init__(self, length, width=1024, layers=24, heads=16, inner=4096):
        super().__init__()
        self.words = nn.Parameter(torch.empty(VOCAB, width).normal_())
        turns = Turns(length, width // heads)
        self.blocks = nn.ModuleList([Block(width, heads, inner, turns) for _ in range(layers)])
        self.norm, self.head = Norm(width), Linear(width, VOCAB)

    def forward(self, tokens):
        x = _embedded = self.words[tokens, :]  # the second name lives as long as the function
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x)


def log_shares(x):
    """Logarithm of `shares`."""
    top = x.max(-1, keepdim=True)[0]
    x = x - top
    return x - torch.log(torch.sum(torch.exp(x), dim=-1, keepdim=True))


def loss_of(logits, targets):
    """Cross entropy by elementary operators."""
    surprise = -log_shares(logits)
    return torch.mean(torch.gather(surprise, -1, targets.unsqueeze(-1)))


class LoopedAdamW(torch.optim.Optimizer):
    """One parameter after the other, each with new averages."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-3})

    def step(self, closure=None):
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, state = parameter.grad.data, self.state[parameter]
                parameter.data -= 1e-5 * parameter.data
                mean = state.get("mean", torch.zeros_like(gradient))
                square = state.get("square", torch.zeros_like(gradient))
                new_mean = 0.9 * mean + (0.1 * gradient)
                new_square = 0.999 * square + (0.001 * torch.square(gradient))
                parameter.data -= 1e-3 * new_mean / (torch.sqrt(new_square) + 1e-8)
                state["mean"], state["square"] = new_mean, new_square


# What a local name holds lives until its function ends: the statements above are as many as those of the course.


def training_history(length, warmup=2):
    """Allocations and frees (negative) of one step, gradients cleared before it and kept after."""
    with torch.device("cuda"):
        model = Transformer(length)
    optimizer = LoopedAdamW(model.parameters())
    texts, targets = (torch.randint(0, VOCAB, (warmup + 1, BATCH, length), device="cuda") for _ in range(2))
    for i in range(warmup):
        logits = model(texts[i])
        loss = loss_of(logits, targets[i])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    del logits, loss
    return _recorded(lambda: _step(model, optimizer, texts[-1], targets[-1]))


def inference_history(length, dtype, warmup=2):
    """The same of a forward pass under autocast, without gradients."""
    with torch.device("cuda"):
        model = Transformer(length).eval()
    texts = torch.randint(0, VOCAB, (warmup + 1, BATCH, length), device="cuda")

    def forward(text):
        with torch.autocast("cuda", dtype):
            model(text)

    with torch.inference_mode():
        for i in range(warmup):
            forward(texts[i])
        return _recorded(lambda: forward(texts[-1]))


def _step(model, optimizer, text, target):
    output = model(text)
    loss = loss_of(output, target)
    loss.backward()
    optimizer.step()
    return output, loss


def _recorded(run):
    torch.cuda.synchronize()
    torch.cuda.memory._record_memory_history(max_entries=1_000_000, context=None)
    kept = run()
    torch.cuda.synchronize()
    events = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    del kept
    signs = {"alloc": 1, "free_completed": -1}
    return [event["size"] * signs[event["action"]] for event in events if event["action"] in signs]
