"""`loss`: the cross entropy of a real model, by chunks of rows, whoever computes it.

    chunks     the head's logits exist; the loss takes them by chunks
    fused      the head makes none: it hands on its hidden states, of which the loss makes logits by chunks

The head is the linear layer that makes logits: what the model itself names (`get_output_embeddings`), the one that
shares its matrix with an embedding, or else the last one outside of the blocks.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.loss import check_loss
from dnnmem.estimator.plan import Loss, Plan
from dnnmem.profilers.apply.deferred_logits import Logits, Source
from dnnmem.profilers.found_blocks import blocks_of
from dnnmem.profilers.rules.autocast import autocast_device


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model`, whose logits wait for the loss as `plan.loss` says; the same object.

    Raises `UnsupportedError` for a model without a head; what the logits go into is only known when it runs.
    """
    if plan.loss == Loss():
        return model
    check_loss(plan)
    head = find_head(model)
    if head is None:
        raise UnsupportedError(
            f"loss finds no linear layer behind the blocks of {type(model).__name__} that makes logits",
            hint="leave loss.chunks and loss.fused out",
        )
    _defer(head, plan.loss)
    return model


def find_head(model: nn.Module) -> nn.Linear | None:
    """The layer that makes logits; None if there is none."""
    named = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(named, nn.Linear):
        return named
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = [m for m in linear.values() if id(m.weight) in tables]
    blocks = tuple(f"{name}." for name, _ in blocks_of(model))
    outside = [m for name, m in linear.items() if not f"{name}.".startswith(blocks)]
    return next(reversed(tied or outside), None)


def _defer(head: nn.Linear, loss: Loss) -> None:
    inner = head.forward

    def forward(self: nn.Linear, hidden: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return inner(hidden)
        if not loss.fused:
            logits = inner(hidden)
            return Logits(Source(logits, None, loss.chunks), logits.dtype)
        dtype = _computes_in(hidden)
        return Logits(Source(hidden.to(dtype), self, loss.chunks), dtype)

    head.forward = MethodType(forward, head)  # type: ignore[method-assign]


def _computes_in(hidden: Tensor) -> torch.dtype:
    """The type that a product with it would be computed in."""
    kind: Any = autocast_device(hidden.device)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
