"""Any image classifier of timm, trained as timm's own benchmark does: fp16 autocast, SGD with momentum, no loss scale.

It shows a model of a library by its name, autocast, and channels-last memory.

    dnnmem profile sample_models/timm_classifier.py --batch 256 --arg name=resnet50 --arg channels_last=true
"""

from __future__ import annotations

from collections.abc import Iterable

import timm
import torch
from torch import nn
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]


def make_model(name: str = "resnet50", *, image: int = 224, channels_last: bool = False) -> nn.Module:
    """The model of timm called `name`; `image` is the side of its input, for models that are built for one."""
    model = timm.create_model(name)
    if image != model.default_cfg["input_size"][-1] and hasattr(model, "set_input_size"):
        model.set_input_size((image, image))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def make_batch(batch_size: int = 256, image: int = 224, classes: int = 1000, *, channels_last: bool = False) -> Batch:
    """Images (batch, 3, image, image) and their classes (batch,)."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(batch_size, 3, image, image).contiguous(memory_format=layout)
    return images, torch.randint(classes, (batch_size,))


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 1e-4) -> torch.optim.Optimizer:
    """SGD with momentum, parameter by parameter: torch did not update lists of them when that benchmark was made."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, foreach=False)


def train_step(model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One step: forward under autocast, loss, backward and update outside of it."""
    optimizer.zero_grad()
    with torch.autocast(batch[0].device.type, torch.float16):
        scores = model(batch[0])
    loss = functional.cross_entropy(scores.float(), batch[1])
    loss.backward()
    optimizer.step()
    return loss
