"""Ways to run a training step, each a function of the loss that makes `train_step(model, batch, optimizer)`."""

from __future__ import annotations

import functools

import torch
from torch import nn

from tests.models.entry import plain_step


def amp_step(forward_loss, dtype=torch.bfloat16):
    """Forward and loss under autocast."""

    def loss(model, batch):
        with torch.autocast("cuda", dtype):
            return forward_loss(model, batch)

    return functools.partial(plain_step, loss)


def scaled_step(forward_loss):
    """Half precision with a loss scaler that lives with the model, and clipping."""

    def step(model, batch, optimizer):
        if not hasattr(model, "loss_scaler"):
            model.loss_scaler = torch.amp.GradScaler("cuda")
        with torch.autocast("cuda", torch.float16):
            loss = forward_loss(model, batch)
        model.loss_scaler.scale(loss).backward()
        model.loss_scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        model.loss_scaler.step(optimizer)
        model.loss_scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def channels_last_step(forward_loss):
    """The model and its images in the order NHWC."""

    def loss(model, batch):
        model.to(memory_format=torch.channels_last)
        return forward_loss(model, (batch[0].contiguous(memory_format=torch.channels_last), *batch[1:]))

    return functools.partial(plain_step, loss)


def accumulating_step(forward_loss, parts=4):
    """Gradients of parts of the batch, added up, kept from step to step and filled with zeros."""

    def step(model, batch, optimizer):
        optimizer.zero_grad(set_to_none=False)
        for part in zip(*(tensor.chunk(parts) for tensor in batch), strict=True):
            (forward_loss(model, part) / parts).backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        optimizer.step()

    return step


def penalized_step(forward_loss):
    """The gradient's own norm is part of the loss, which makes backward run twice."""

    def step(model, batch, optimizer):
        loss = forward_loss(model, batch)
        gradients = torch.autograd.grad(loss, tuple(model.parameters()), create_graph=True)
        (loss + sum(g.square().sum() for g in gradients)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
