"""The smallest file that dnnmem can profile: a multilayer perceptron on flattened images.

It shows the two hooks that a file needs, `make_model` and `make_batch`, and the one for a loss of its own; the
optimizer is chosen on the command line.

    dnnmem profile sample_models/mlp.py --batch 256 --arg depth=8 --optimizer sgd:momentum=0.9
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def make_model(inputs: int = 784, width: int = 2048, depth: int = 4, classes: int = 10) -> nn.Module:
    """`depth` hidden layers of `width`; takes (batch, inputs), gives (batch, classes)."""
    layers: list[nn.Module] = []
    for size in [inputs] + [width] * (depth - 1):
        layers += [nn.Linear(size, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def make_batch(batch_size: int = 8, inputs: int = 784, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (batch, inputs) and their classes (batch,)."""
    return torch.randn(batch_size, inputs), torch.randint(classes, (batch_size,))


def make_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy with the classes of the batch."""
    return functional.cross_entropy(output, batch[1])
