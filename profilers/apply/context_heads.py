"""Ulysses (Jacobs et al. 2023): for attention, ranks swap parts of the sequence for parts of the heads, and back.

    (B, H, T / n, D) --all_to_all--> (B, H / n, T, D) --attention--> (B, H / n, T, D) --all_to_all--> (B, H, T / n, D)

What comes out lies as kernels lay it out, (B, T, H, D) in memory, so that the model's own reshapes stay views.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from dnnmem.estimator.passes.context_sizes import check_heads
from dnnmem.profilers.apply.context_share import Share


def heads_attention(
    share: Share, q: Tensor, k: Tensor, v: Tensor, *, dropout: float, causal: bool, scale: float | None, gqa: bool
) -> Tensor:
    """(B, H, T / n, D) queries, keys and values of this rank to what they attend to among all."""
    check_heads((q.shape[1], k.shape[1]), share.ranks)
    q, k, v = (_Swap.apply(x, share, "heads") for x in (q, k, v))
    more: dict[str, Any] = {"enable_gqa": True} if gqa else {}
    out = functional.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, is_causal=causal, scale=scale, **more
    )  # fmt: skip
    found: Tensor = _Swap.apply(out, share, "sequence")
    return found


def _exchange(x: Tensor, cut: int, share: Share) -> Tensor:
    """Send each rank its part of dimension `cut`: (n, ...) parts of what the ranks have."""
    sent = x.unflatten(cut, (share.ranks, -1)).movedim(cut, 0).contiguous()
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=share.group)
    return received


def _to_heads(x: Tensor, share: Share) -> Tensor:
    parts = _exchange(x, 1, share)  # (n, B, H / n, T / n, D): parts of the sequence
    return parts.permute(1, 0, 3, 2, 4).flatten(1, 2).transpose(1, 2)


def _to_sequence(x: Tensor, share: Share) -> Tensor:
    parts = _exchange(x, 2, share)  # (n, B, H / n, T / n, D): parts of the heads
    return parts.permute(1, 3, 0, 2, 4).flatten(2, 3).transpose(1, 2)


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share, to: str) -> Tensor:
        ctx.share, ctx.to = share, to
        return (_to_heads if to == "heads" else _to_sequence)(x, share)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (_to_sequence if ctx.to == "heads" else _to_heads)(gradient, ctx.share), None, None
