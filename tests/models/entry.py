"""What every model of the zoo brings: enough for a Target, for the oracle of saved bytes, and for a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def plain_step(forward_loss, model, batch, optimizer):
    """The loop everybody writes: forward, backward, update, forget the gradients."""
    loss = forward_loss(model, batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def trained(parameters):
    return [parameter for parameter in parameters if parameter.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One small model and how it is trained; all functions are plain and build in the current context."""

    make_model: Callable[[], nn.Module]
    make_batch: Callable[[int], Any]
    """Takes the batch size, returns a tuple of tensors: inputs, then labels."""
    forward_loss: Callable[[nn.Module, Any], torch.Tensor]
    """The scalar loss of one batch, with its graph."""
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = lambda ps: torch.optim.AdamW(trained(ps), lr=1e-3)
    step: Callable[[nn.Module, Any, Optimizer], torch.Tensor] | None = None
    """How a whole step goes, if not as `plain_step`."""
    needs_values: bool = False
    """True if the step reads a tensor's value (`.item()`), which a fake tensor does not have."""

    @property
    def train_step(self) -> Callable[[nn.Module, Any, Optimizer], torch.Tensor]:
        """`train_step(model, batch, optimizer)`: one whole step, gradients forgotten at its end."""
        return self.step or partial(plain_step, self.forward_loss)
