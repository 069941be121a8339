"""Twelve commits of a small language model: four that need more memory, one that needs less, seven that change none.

Each is a change of one file, with what a check has to say of it. The model has what such projects have: attention
written by hand, dropout, mixed precision, checkpointed blocks, a training step of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TARGET = "train.py"

BLOCKS = '''\
"""The blocks of the language model."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        weights = F.dropout(scores.masked_fill(~mask, -1e4).softmax(-1), self.dropout, self.training)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, c))


class Mlp(nn.Module):
    def __init__(self, width, ratio=4):
        super().__init__()
        self.up = nn.Linear(width, ratio * width)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def make_block(width, heads, dropout):
    return Block(width, heads, dropout)
'''

TRAIN = '''\
"""Trains a small language model."""

import torch
from nets import blocks as nets
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LEARNING_RATE = 3e-4
SEED = 1


class Net(nn.Module):
    def __init__(self, vocab=1000, width=128, depth=4, heads=4, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(nets.make_block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(self.norm(x))


def make_model():
    torch.manual_seed(SEED)
    return Net()


def make_batch(batch_size=8, seq_len=256):
    text = torch.randint(1000, (batch_size, seq_len + 1))
    return text[:, :-1], text[:, 1:]


def make_optimizer(parameters):
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE)


def train_step(model, batch, optimizer):
    tokens, targets = batch
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(tokens)
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
'''

LOSS = """\
def language_loss(logits, targets):
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


"""

FIRST = {"nets/blocks.py": BLOCKS, TARGET: TRAIN, "README.md": "# A language model\n"}
"""Files of the commit before these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A change, and the truth about it."""

    message: str
    file: str = "nets/blocks.py"
    changes: tuple[tuple[str, str], ...]
    """Texts and what goes in their places, wherever they stand."""
    outcome: str = "ok"
    """What the check has to find."""
    layer: str = ""
    """The layers to blame, as a pattern that their paths begin with."""


COMMITS = (
    Commit(
        message="Call the residual blocks layers of a decoder, and their variables what they are",
        changes=(
            ("class Block", "class DecoderLayer"), ("return Block", "return DecoderLayer"),
            ("norm1", "attention_norm"), ("norm2", "mlp_norm"),
        ),
    ),
    Commit(message="Say how to train it", file="README.md", changes=(("model\n", "model\n\nRun `train.py`.\n"),)),
    Commit(
        message="Give the perceptron more room",
        changes=(("ratio=4", "ratio=6"),), outcome="regressed", layer=r"blocks\.[0-9-]+\.mlp",
    ),
    Commit(message="Learn faster", file=TARGET, changes=(("3e-4", "6e-4"),)),
    Commit(
        message="Let one kernel attend",
        changes=(
            ("        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])\n", ""),
            ("        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()\n", ""),
            (
                "weights = F.dropout(scores.masked_fill(~mask, -1e4).softmax(-1), self.dropout, self.training)",
                "y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, is_causal=True)",
            ),
            ("(weights @ v)", "y"), ("import math\n\n", ""),
        ),
        outcome="improved", layer=r"blocks\.[0-9-]+\.attention",
    ),
    Commit(
        message="Explain the mask of the future",
        changes=(("        b, t, c = x.shape\n", "        # batch, time, channels\n        b, t, c = x.shape\n"),),
    ),
    Commit(
        message="Tidy the loop over the layers",
        file=TARGET, changes=(("checkpoint(block, x, use_reentrant=False)", "block(x)"),),
        outcome="regressed", layer=r"blocks\.[0-9-]+",
    ),
    Commit(message="Drop less", file=TARGET, changes=(("dropout=0.1", "dropout=0.05"),)),
    Commit(
        message="Part the loss from the step",
        file=TARGET,
        changes=(
            ("    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())\n",
             "    loss = language_loss(logits, targets)\n"),
            ("def train_step", LOSS + "def train_step"),
        ),
    ),
    Commit(
        message="Train in full precision until the spikes are understood",
        file=TARGET,
        changes=(("torch.autocast(tokens.device.type, torch.bfloat16)",
                  "torch.autocast(tokens.device.type, torch.bfloat16, enabled=False)"),),
        outcome="regressed", layer=r"blocks\.[0-9-]+|head",
    ),
    Commit(message="Another seed", file=TARGET, changes=(("SEED = 1", "SEED = 1337"),)),
    Commit(
        message="Keep the last losses for the plot",
        file=TARGET,
        changes=(
            ("SEED = 1337\n", "SEED = 1337\nLOSSES = []\n"),
            ("    loss.backward()\n", "    LOSSES.append(loss)\n    loss.backward(retain_graph=True)\n"),
        ),
        outcome="regressed", layer=r"blocks\.[0-9-]+",
    ),
)  # fmt: skip
"""In their order; each builds on those before it."""


def write(folder: Path, files: dict[str, str]) -> None:
    """The files of a commit below `folder`."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def after(files: dict[str, str], commit: Commit) -> dict[str, str]:
    """The files with a commit's changes; `ValueError` for one that changes nothing."""
    text = files[commit.file]
    for old, new in commit.changes:
        if old not in text:
            raise ValueError(f"{commit.message}: {commit.file} has no {old!r}")
        text = text.replace(old, new)
    return {**files, commit.file: text}
