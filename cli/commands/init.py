"""`dnnmem init`: writes a model.py to start from, with every hook that dnnmem looks for and why it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnnmem.estimator.errors import UsageError

TEMPLATE = '''\
"""What dnnmem trains: run `dnnmem profile {name} --batch 8`."""

import torch
from torch import nn


# Required. Build the model; nothing is downloaded, weights may be random.
# Parameters of this function can be set from outside: dnnmem profile {name} --arg width=1024
def make_model(width: int = 512):
    return nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 10))


# Required. One batch, of any size that --batch asks for: dnnmem tries several to see what grows with it.
# A tensor goes in as model(x), a dict as model(**batch); of a tuple the model gets the inputs, the loss the rest.
# Add seq_len=128 as a parameter if the model has sequences: --seq sets it.
def make_batch(batch_size: int):
    return torch.randn(batch_size, 256), torch.randint(0, 10, (batch_size,))


# Optional. The default takes output.loss, output["loss"] or an output that is one number.
def make_loss(output, batch):
    _, labels = batch
    return nn.functional.cross_entropy(output, labels)


# Optional. The default is AdamW; --optimizer names another one.
# def make_optimizer(parameters):
#     return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


# Optional. The whole step, for what the plain loop does not do: accumulation, autocast, clipping, several losses.
# def train_step(model, batch, optimizer):
#     inputs, labels = batch
#     with torch.autocast("cuda", torch.bfloat16):
#         loss = nn.functional.cross_entropy(model(inputs), labels)
#     loss.backward()
#     optimizer.step()
#     optimizer.zero_grad(set_to_none=True)
#     return loss
'''
"""The file, with its own name at `{name}`."""


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("model.py"),
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented model.py to start from."""
    from dnnmem.cli.export.files import check_writable, write_atomic

    if path.suffix != ".py":
        raise UsageError(f"{path} does not end with .py; it will be a Python file", hint=f"dnnmem init {path}.py")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already and stays as it is", hint="name another file, or replace it with --force")
    check_writable(path, "FILE")
    write_atomic(path, TEMPLATE.replace("{name}", str(path)))
    typer.echo(f"wrote {path}; next: dnnmem profile {path} --batch 8")
