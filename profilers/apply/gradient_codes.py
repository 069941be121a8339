"""Numbers as codes of 1, 2, 4 or 8 bits, for the wire: signs and a mean length, or few levels, rounded at random.

    signs     x -> s * (2 q - 1)            q = 1 where x is not negative      s: mean length of the row's numbers
    levels    x -> s * (q - half) / half    q = floor(x / s * half + half + u), u uniform in [0, 1): right on average
                                            s: largest of each group           half = 2^(bits - 1) - 1

Levels of 2 bits are -s, 0 and s (TernGrad). A byte holds codes that lie far apart in their row, so that each step of
packing goes over memory in order. `estimator/passes/gradients_codes.py` counts what all this allocates and moves.

>>> x = torch.linspace(-1.0, 1.0, 64).view(2, 32)
>>> codes, scale = encode_levels(x, 8, 32, torch.Generator())
>>> bool((decode(codes, scale, 8) - x).abs().max() <= 1 / 127)
True
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-30
"""Smallest scale: that of a group of zeros."""


def encode_levels(rows: Tensor, bits: int, group: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix; `group` elements of a row share a scale."""
    half = _half(bits)
    groups = rows.view(-1, group)
    scale = torch.linalg.vector_norm(groups, torch.inf, dim=1, keepdim=True).clamp_(min=_TINY)
    noise = torch.rand(groups.shape, generator=generator, dtype=rows.dtype, device=rows.device)
    noise.addcdiv_(groups, scale, value=half).add_(half).clamp_(max=2 * half)
    codes = noise.to(torch.uint8)
    del noise
    return _packed(codes.view(len(rows), -1), bits), scale.view(len(rows), -1)


def encode_signs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of a matrix, and the mean length of the numbers of each row."""
    scale = torch.linalg.vector_norm(rows, 1, dim=1, keepdim=True).div_(rows.shape[1])
    return _packed((rows >= 0).view(torch.uint8), 1), scale


def decode(packed: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The matrix, in the type of its scales."""
    parts, half = 8 // bits, _half(bits)
    out = torch.empty(len(packed), parts, packed.shape[1], dtype=scale.dtype, device=packed.device)
    for j in range(parts):
        plane = packed if parts == 1 else packed.bitwise_right_shift(j * bits).bitwise_and_(2**bits - 1)
        out[:, j].copy_(plane)
        del plane
    groups = out.view(scale.numel(), -1)
    groups.sub_(half).mul_(scale.view(-1, 1) / half)
    return out.view(len(packed), -1)


def _half(bits: int) -> float:
    return 0.5 if bits == 1 else 2 ** (bits - 1) - 1


def _packed(codes: Tensor, bits: int) -> Tensor:
    parts = 8 // bits
    if parts == 1:
        return codes
    planes = codes.view(len(codes), parts, -1)
    packed = planes[:, 0].clone()
    for j in range(1, parts):
        packed.add_(planes[:, j], alpha=1 << j * bits)
    return packed
