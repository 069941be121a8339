"""A diffusion U-Net: it learns the noise in an image at a given time (DDPM, Ho et al. 2020, arXiv 2006.11239).

It shows skip connections, which keep activations of the way down alive until the way up, group norm, attention at the
lowest resolution, and a batch of named tensors.

    image (B, 3, H, W) --down--> --down--> middle with attention --up, joined with the way down--> noise (B, 3, H, W)

    dnnmem profile sample_models/unet.py --batch 16 --arg image=64
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

GROUPS = 8
"""Groups of each group norm; divides all channel counts."""


class Residual(nn.Module):
    """Two convolutions with the time added between: (B, C, H, W) to (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        """Args: channels in and out, and the width of the time embedding."""
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs))
        self.second = nn.Sequential(nn.GroupNorm(GROUPS, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """One block at this time."""
        out: torch.Tensor = self.shortcut(x) + self.second(self.first(x) + self.time(time)[:, :, None, None])
        return out


class Attention(nn.Module):
    """Self-attention over the places of an image, one head: (B, C, H, W) to the same."""

    def __init__(self, width: int) -> None:
        """Args: `width` is the number of channels."""
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each place attends to all."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT[:, None].chunk(3, dim=-1)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended[:, 0].mT.unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """Noisy images (B, 3, H, W) and times (B,) to the noise (B, 3, H, W)."""

    def __init__(self, width: int, levels: tuple[int, ...]) -> None:
        """Args: `levels` multiply `width`, one for each resolution from the finest down."""
        super().__init__()
        self.width, time = width, 4 * width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        sizes = [width * level for level in levels]
        self.stem = nn.Conv2d(3, sizes[0], 3, padding=1)
        pairs = list(zip([sizes[0], *sizes], sizes, strict=False))
        self.down = nn.ModuleList(Residual(inputs, outputs, time) for inputs, outputs in pairs)
        self.shrink = nn.ModuleList(nn.Conv2d(size, size, 3, stride=2, padding=1) for size in sizes)
        self.middle, self.attention = Residual(sizes[-1], sizes[-1], time), Attention(sizes[-1])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(size, size, 2, stride=2) for size in reversed(sizes))
        self.up = nn.ModuleList(Residual(2 * outputs, inputs, time) for inputs, outputs in reversed(pairs))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, sizes[0]), nn.SiLU(), nn.Conv2d(sizes[0], 3, 3, padding=1))

    def forward(self, images: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """The noise in the images."""
        time = self.time(self._waves(times).to(images.dtype))
        x, skips = self.stem(images), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(block(x, time))
            x = shrink(skips[-1])
        x = self.attention(self.middle(x, time))
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([grow(x), skips.pop()], dim=1), time)
        noise: torch.Tensor = self.out(x)
        return noise

    def _waves(self, times: torch.Tensor) -> torch.Tensor:
        # (B,) to (B, width): sines and cosines of geometric frequencies
        powers = torch.arange(self.width // 2, device=times.device) / (self.width // 2)
        angles = times[:, None] * 10000**-powers
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def make_model(width: int = 128, levels: tuple[int, ...] = (1, 2, 2, 4)) -> nn.Module:
    """A U-Net with one residual block at each of the `levels` on the way down and up."""
    return UNet(width, levels)


def make_batch(batch_size: int = 8, image: int = 64) -> dict[str, torch.Tensor]:
    """Noisy images, the times they are at, and the noise; `image` is a multiple of 2 to the number of levels."""
    noise = torch.randn(batch_size, 3, image, image)
    return {"images": torch.randn_like(noise) + noise, "times": torch.rand(batch_size) * 1000, "noise": noise}


def make_loss(output: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean squared error of the noise."""
    return functional.mse_loss(output, batch["noise"])
