"""Branches that meet before the loss: two towers, or one that is called twice."""

import torch
from torch import nn
from torch.nn import functional

WIDTH, BATCH = 64, 65536


class Block(nn.Module):
    """Two products and a residual."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(functional.gelu(self.up(x)))


class Tower(nn.Module):
    """One branch."""

    def __init__(self, count, width):
        super().__init__()
        self.enter, self.blocks = nn.Linear(width, width), nn.ModuleList(Block(width) for _ in range(count))

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return x


class Joined(nn.Module):
    """Two towers, or one that is called twice."""

    def __init__(self, left=4, right=6, width=WIDTH, *, shared=False):
        super().__init__()
        self.left = Tower(left, width)
        self.right = self.left if shared else Tower(right, width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        return self.head(torch.cat([self.left(x[:, 0]), self.right(x[:, 1])], -1))


def make_model(shared="0"):
    """For a target that is a file."""
    return Joined(shared=shared == "1")


def make_batch(batch_size=BATCH):
    return torch.randn(batch_size, 2, WIDTH), torch.randint(10, (batch_size,))


def make_loss(out, batch):
    return functional.cross_entropy(out, batch[1])
