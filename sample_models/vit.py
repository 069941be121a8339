"""A vision transformer: ViT-B/16 by default (Dosovitskiy et al. 2020, arXiv 2010.11929), trained in mixed precision.

It shows autocast to bfloat16 in a `train_step` of its own: parameters, gradients and optimizer states stay float32,
most activations take half the bytes, and weights are cast once for each step.

    dnnmem profile sample_models/vit.py --batch 64
    dnnmem profile sample_models/vit.py --batch 64 --arg precision=float32
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

Batch = dict[str, torch.Tensor]


class ViT(nn.Module):
    """Images (B, 3, H, W) to logits (B, classes)."""

    def __init__(
        self, *, image: int, patch: int, width: int, layers: int, heads: int, classes: int, precision: str
    ) -> None:
        """Args: sizes as in `make_model`."""
        super().__init__()
        self.precision = getattr(torch, precision)
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        block = {"dropout": 0.0, "activation": functional.gelu, "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, **block)  # type: ignore[arg-type]  # keywords of many types
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the class, read from the first token."""
        patches = self.patches(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(patches), -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x[:, 0]))
        return logits


def make_model(
    *,
    image: int = 224,
    patch: int = 16,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    classes: int = 1000,
    precision: str = "bfloat16",
) -> nn.Module:
    """ViT of any size; `precision` is the element type of its products and convolutions: bfloat16 or float32."""
    return ViT(image=image, patch=patch, width=width, layers=layers, heads=heads, classes=classes, precision=precision)


def make_batch(batch_size: int = 8, image: int = 224, classes: int = 1000) -> Batch:
    """Images (batch, 3, image, image) and their classes (batch,)."""
    return {"images": torch.randn(batch_size, 3, image, image), "labels": torch.randint(classes, (batch_size,))}


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> torch.optim.Optimizer:
    """AdamW, with states in float32 whatever the precision."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)


def train_step(model: ViT, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One step: forward and loss under autocast, backward and update outside of it."""
    images, labels = batch["images"], batch["labels"]
    with torch.autocast(images.device.type, model.precision, enabled=model.precision != torch.float32):
        loss = functional.cross_entropy(model(images), labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss
