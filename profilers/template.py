"""What `dnnmem init` writes: a commented `model.py` that works as it is, with every hook that there is.

>>> compile(TEMPLATE, "model.py", "exec") is not None
True
"""

from __future__ import annotations

TEMPLATE = '''\
"""A model for dnnmem to look into.

    dnnmem profile model.py                                where every byte and second of a training step goes
    dnnmem profile model.py --batch 32 --arg width=1024    arguments of make_model and make_batch, by name
    dnnmem recommend model.py --gpus 8 --gpu h100          the best ways to run it there
"""

import torch
import torch.nn.functional as F
from torch import nn


def make_model(width: int = 256, classes: int = 10) -> nn.Module:
    """Build the model as your script does. Random weights will do: their values do not matter here."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * 32 * 32, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def make_batch(batch_size: int = 8, classes: int = 10):
    """Build one batch of any size; dnnmem makes several to learn how memory grows.

    A tensor goes in as model(x), a dict as keywords, a tuple as the leading positions of forward (labels after them).
    Take `seq_len` as well if your inputs have a length: it comes from --seq.
    """
    images = torch.randn(batch_size, 3, 32, 32)
    labels = torch.randint(classes, (batch_size,))
    return images, labels


def make_loss(output, batch):
    """Compute the scalar to differentiate. Leave this out if the model returns its loss."""
    _images, labels = batch
    return F.cross_entropy(output, labels)


# Optional: without it, --optimizer chooses (AdamW unless told otherwise).
#
# def make_optimizer(parameters):
#     return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


# Optional: your own loop's body, where it is more than forward, backward and step (accumulation, autocast, clipping).
#
# def train_step(model, batch, optimizer):
#     with torch.autocast(batch[0].device.type, dtype=torch.bfloat16):
#         loss = make_loss(model(batch[0]), batch)
#     loss.backward()
#     nn.utils.clip_grad_norm_(model.parameters(), 1.0)
#     optimizer.step()
#     optimizer.zero_grad(set_to_none=True)
'''
"""The whole text of the file."""
