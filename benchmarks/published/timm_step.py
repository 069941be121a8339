"""A step of a timm classifier of 45 classes, as torchao's benchmark of its optimizers makes it (images of 224 x 224).

In float32 and without checkpoints: types, recomputation, offload and the optimizer come by a plan.
"""

from __future__ import annotations

from collections.abc import Iterable

import timm
import torch
from torch import nn
from torch.nn import functional

CLASSES = 45


def make_model(name: str = "vit_huge_patch14_224") -> nn.Module:
    """The model of timm called `name`, its input 224 wide."""
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, img_size=224)
    return model


def make_batch(batch_size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (batch, 3, 224, 224) and their classes (batch,)."""
    return torch.randn(batch_size, 3, 224, 224), torch.randint(CLASSES, (batch_size,))


def make_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy."""
    return functional.cross_entropy(output, batch[1])


def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW in one kernel."""
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
