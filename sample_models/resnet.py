"""A residual convolutional network for images: ResNet-50 by default (He et al. 2015, arXiv 1512.03385).

It shows convolutions, batch norm with its running buffers, and SGD with momentum: most of the memory is activations of
the first stages, where images are large, while most of the parameters sit in the last.

    dnnmem profile sample_models/resnet.py --batch 32
    dnnmem profile sample_models/resnet.py --batch 32 --arg blocks=3,4,23,3     ResNet-101
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """Narrow, convolve, widen, and add the input: (B, C, H, W) to (B, 4 width, H / stride, W / stride)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        """Args: channels of the input, of the middle, and the stride of the middle convolution."""
        super().__init__()
        self.narrow = _convolution(inputs, width, kernel=1)
        self.middle = _convolution(width, width, kernel=3, stride=stride)
        self.widen = _convolution(width, 4 * width, kernel=1)
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else _convolution(inputs, 4 * width, kernel=1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block."""
        hidden = functional.relu(self.narrow(x), inplace=True)
        hidden = functional.relu(self.middle(hidden), inplace=True)
        return functional.relu(self.widen(hidden) + self.shortcut(x), inplace=True)


def make_model(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> nn.Module:
    """Four stages of bottlenecks, each twice as wide as the one before and half as large."""
    stem = [_convolution(3, width, kernel=7, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)]
    stages, inputs = [], width
    for stage, count in enumerate(blocks):
        middle = width * 2**stage
        strides = [1 if stage == 0 else 2] + [1] * (count - 1)
        sizes = [inputs] + [4 * middle] * (count - 1)
        stages.append(nn.Sequential(*(Bottleneck(n, middle, stride) for n, stride in zip(sizes, strides, strict=True))))
        inputs = 4 * middle
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def make_batch(batch_size: int = 8, image: int = 224, classes: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (batch, 3, image, image) and their classes (batch,)."""
    return torch.randn(batch_size, 3, image, image), torch.randint(classes, (batch_size,))


def make_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy with the classes of the batch."""
    return functional.cross_entropy(output, batch[1])


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 0.1) -> torch.optim.Optimizer:
    """SGD as in the paper: one state, the momentum, for each parameter."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
