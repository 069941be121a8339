"""Ways to train that change what lives when: frozen weights, a second copy, clipping, accumulation, mixed precision."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from tests.models.entry import Entry

FEATURES, WIDTH, CLASSES = 16, 32, 5


def points(batch_size):
    return torch.randn(batch_size, FEATURES), torch.randint(CLASSES, (batch_size,))


def cross_entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def mlp():
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


class LoRA(nn.Module):
    """A frozen linear layer and a low-rank change that learns."""

    def __init__(self, inputs, outputs, rank=4):
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + 2 * self.up(self.down(x))


def lora():
    return nn.Sequential(LoRA(FEATURES, WIDTH), nn.GELU(), LoRA(WIDTH, WIDTH), nn.GELU(), LoRA(WIDTH, CLASSES))


class Averaged(nn.Module):
    """A model and the moving average of its weights."""

    def __init__(self):
        super().__init__()
        self.model = mlp()
        self.average = copy.deepcopy(self.model).requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.model(x)


def averaged_step(model, batch, optimizer):
    loss = cross_entropy(model, batch)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(list(model.average.parameters()), list(model.model.parameters()), 0.01)
    optimizer.zero_grad(set_to_none=True)
    return loss


def clipped_step(model, batch, optimizer):
    loss = cross_entropy(model, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def accumulated_step(model, batch, optimizer, parts=2):
    """Gradients of two halves of the batch, added up."""
    losses = []
    for inputs, labels in zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True):
        loss = functional.cross_entropy(model(inputs), labels) / parts
        loss.backward()
        losses.append(loss.detach())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses).sum()


def zeroing_step(model, batch, optimizer):
    """Gradients stay allocated from step to step, filled with zeros."""
    optimizer.zero_grad(set_to_none=False)
    loss = cross_entropy(model, batch)
    loss.backward()
    optimizer.step()
    return loss


class Scaled(nn.Module):
    """A model with its loss scaler, which lives from step to step."""

    def __init__(self):
        super().__init__()
        self.model = mlp()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.model(x)


def mixed_loss(model, batch):
    return functional.cross_entropy(model(batch[0]).float(), batch[1])


def scaled_step(model, batch, optimizer):
    """Mixed precision with loss scaling: gradients are unscaled and clipped before the update."""
    loss = mixed_loss(model, batch)
    model.scaler.scale(loss).backward()
    model.scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    model.scaler.step(optimizer)
    model.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss


def entry(make_model, **options):
    return Entry(make_model=make_model, **{"make_batch": points, "forward_loss": cross_entropy, **options})


def looped_adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, foreach=False)


TRAINING = {
    "lora": entry(lora),
    "ema": entry(Averaged, step=averaged_step),
    "clipping": entry(mlp, step=clipped_step, make_optimizer=partial(torch.optim.AdamW, lr=1e-3, foreach=True)),
    "accumulation": entry(mlp, step=accumulated_step, make_optimizer=looped_adam),
    "zeroed_grads": entry(mlp, step=zeroing_step, make_optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=True)),
    "adafactor": entry(mlp, make_optimizer=partial(torch.optim.Adafactor, lr=1e-3), needs_values=True),
    "grad_scaler": entry(Scaled, step=scaled_step, forward_loss=mixed_loss, needs_values=True),
}
