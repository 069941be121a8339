"""What one training step is made of, and the plain eager loop for targets that bring no `train_step` of their own.

A `Target` only knows how to build things; the device decides in which context they are built (under FakeTensorMode, on
a GPU, on the virtual one) and runs `train_step` as often as it needs. The plain step is the loop that everybody writes:

    output = model(inputs)          how a batch goes in: Tensor -> model(x); dict -> keywords; tuple -> leading ones
    loss = make_loss(output, batch)     or output.loss, output["loss"], a scalar, the only scalar of a tuple
    loss.backward(); optimizer.step(); optimizer.zero_grad(set_to_none=True)

`output` and `loss` are locals that live until the step returns, as in such a loop: memory depends on it.

>>> import torch
>>> step = plain_step(lambda output, batch: output.pow(2).mean())
>>> model = torch.nn.Linear(2, 1)
>>> loss = step(model, torch.ones(4, 2), torch.optim.SGD(model.parameters(), lr=0.1))
>>> loss.shape, model.weight.grad
(torch.Size([]), None)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import ModelError, UsageError

MAKE_LOSS_EXAMPLE = """\
add make_loss to the file of the model:

    import torch.nn.functional as F

    def make_loss(output, batch):
        inputs, labels = batch
        return F.cross_entropy(output, labels)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the user named, ready to be built and run; nothing is built until a device calls these functions."""

    name: str
    """What the user named, for reports."""
    make_model: Callable[[], nn.Module]
    """Builds the model in the current context (default device, FakeTensorMode). May be called more than once."""
    make_batch: Callable[[], Any]
    """Builds one batch: a tensor, or tensors in a dict, tuple or list; batch size and arguments are bound already."""
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    """Builds the optimizer over the model's parameters."""
    train_step: Callable[[nn.Module, Any, Optimizer], object]
    """Runs one whole step: forward, loss, backward, optimizer step, zero_grad. What it returns is to be dropped."""
    batch: Mapping[str, int | str]
    """For the report: `batch_size`, `seq_len` where there is one, and the `--arg` values."""
    rescale: Callable[[int, int | None], Target]
    """The same target at another batch size and sequence length (None keeps the length)."""
    user_files: tuple[str, ...] = ()
    """Files and folders of the user's own code; tracebacks and source lines are trimmed to them."""
    notes: tuple[str, ...] = ()
    """What was chosen on the user's behalf (input size, loss, labels), in sentences for people."""


MakeLoss = Callable[[Any, Any], torch.Tensor]
"""`make_loss(output, batch)`: the scalar to differentiate."""


def plain_step(make_loss: MakeLoss | None = None) -> Callable[[nn.Module, Any, Optimizer], object]:
    """The plain eager loop's step. Raises `UsageError` if batch, model and loss do not go together."""

    def train_step(model: nn.Module, batch: Any, optimizer: Optimizer) -> object:
        args, kwargs = model_inputs(model, batch, keeps_labels=make_loss is not None)
        output = model(*args, **kwargs)
        loss = find_loss(output) if make_loss is None else _checked(make_loss(output, batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return train_step


def model_inputs(model: nn.Module, batch: Any, *, keeps_labels: bool = False) -> tuple[Sequence[Any], dict[str, Any]]:
    """Positional and keyword arguments with which a batch goes into `model.forward`.

    Args: `keeps_labels` says that a `make_loss` reads the batch too. Then keys that forward does not know stay behind,
    and so does the last element of a tuple unless forward cannot do without it: `forward(x, mask=None)` of `(x, y)`
    gets x alone.
    Raises `UsageError` for a batch that forward cannot take.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    if isinstance(batch, Mapping):
        return (), _keywords(model, batch, parameters, keeps_labels=keeps_labels)
    if isinstance(batch, (tuple, list)):
        return batch[: _leading(model, len(batch), parameters, keeps_labels=keeps_labels)], {}
    return (batch,), {}


def find_loss(output: Any) -> torch.Tensor:
    """The loss in a model's output: its `loss`, itself if scalar, or the only scalar of a tuple; else `UsageError`."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None and isinstance(output, torch.Tensor):
        loss = output
    if loss is None and isinstance(output, (tuple, list)):
        scalars = [x for x in output if isinstance(x, torch.Tensor) and x.dim() == 0]
        loss = scalars[0] if len(scalars) == 1 else None
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        raise UsageError(f"the model returns {describe(output)}, which holds no single loss", hint=MAKE_LOSS_EXAMPLE)
    return _differentiable(loss)


def describe(value: Any) -> str:
    """A value's type and shape in a few words.

    >>> describe((torch.zeros(2, 3), None))
    'a tuple of (a tensor of shape (2, 3), None)'
    """
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {', '.join(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(describe(x) for x in value)})"
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _keywords(
    model: nn.Module, batch: Mapping[str, Any], parameters: Iterable[inspect.Parameter], *, keeps_labels: bool
) -> dict[str, Any]:
    parameters = list(parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and not keeps_labels:
        return dict(batch)
    accepted = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [key for key in batch if key not in accepted]
    if len(unknown) == len(batch) or (unknown and not keeps_labels):
        raise UsageError(
            f"the batch has {', '.join(unknown)}, but {type(model).__name__}.forward takes "
            f"{', '.join(accepted) or 'nothing'}",
            hint="name the keys as forward does; keys for the loss alone need a make_loss(output, batch)",
        )
    return {key: value for key, value in batch.items() if key in accepted}


def _leading(model: nn.Module, length: int, parameters: Iterable[inspect.Parameter], *, keeps_labels: bool) -> int:
    parameters = list(parameters)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    takes = length if any(p.kind is p.VAR_POSITIONAL for p in parameters) else min(len(positional), length)
    if required > length or takes == 0:
        raise UsageError(
            f"the batch has {length} elements, but {type(model).__name__}.forward takes {required or 'none'}",
            hint="return one element for each input of forward (labels after them), or a dict",
        )
    return max(required, min(takes, length - 1), 1) if keeps_labels else takes


def _checked(loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ModelError(f"make_loss returned {describe(loss)}; it must return a scalar tensor", hint=MAKE_LOSS_EXAMPLE)
    return _differentiable(loss)


def _differentiable(loss: torch.Tensor) -> torch.Tensor:
    if not loss.requires_grad:
        raise ModelError(
            "the loss needs no gradient: no trainable parameter leads to it",
            hint="check requires_grad of the parameters, and that nothing is detached or under torch.no_grad()",
        )
    return loss
