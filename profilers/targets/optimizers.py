"""The optimizer of a target that brings none: a name of `torch.optim`, over the parameters that are trained.

Frozen parameters are left out, as scripts for LoRA do, so that no state is counted for them. The learning rate is
small: the step must be real, what it learns does not matter.

>>> import torch
>>> make = optimizer_of("sgd:momentum=0.9,foreach=false")
>>> optimizer = make(torch.nn.Linear(2, 1).parameters())
>>> optimizer.defaults["momentum"], optimizer.defaults["foreach"]
(0.9, False)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import ModelError, UsageError
from dnnmem.profilers.targets.arguments import convert, near, parameters, unknown_argument

LEARNING_RATE = 1e-4
"""Small enough for the losses of a few steps to stay finite."""

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "adamax": ("Adamax", {}),
    "nadam": ("NAdam", {}),
    "radam": ("RAdam", {}),
    "adagrad": ("Adagrad", {}),
    "adadelta": ("Adadelta", {}),
    "adafactor": ("Adafactor", {}),
    "rmsprop": ("RMSprop", {}),
    "rprop": ("Rprop", {}),
    "asgd": ("ASGD", {}),
}
"""Name on the command line -> class in `torch.optim` and its options. LBFGS needs a closure, Muon matrices only."""


def optimizer_of(text: str) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """A maker of the optimizer `name` or `name:option=value,...`; raises `UsageError` for names and options unknown."""
    name, _, rest = text.partition(":")
    entry = OPTIMIZERS.get(name.lower())
    if entry is None:
        raise UsageError(
            f"--optimizer {name!r} is not one of {', '.join(OPTIMIZERS)}",
            hint=near(name.lower(), OPTIMIZERS) or "define make_optimizer(parameters) in model.py for any other",
        )
    cls = getattr(torch.optim, entry[0])
    options = {"lr": LEARNING_RATE, **entry[1], **_options(name, cls, rest)}

    def make_optimizer(trained: Iterable[nn.Parameter]) -> Optimizer:
        chosen = [p for p in trained if p.requires_grad]
        if not chosen:
            raise ModelError(
                "no parameter of the model requires a gradient, so there is nothing to train",
                hint="leave requires_grad of at least one parameter True",
            )
        try:
            optimizer: Optimizer = cls(chosen, **options)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"--optimizer {text}: {error}", hint="change its options") from error
        return optimizer

    return make_optimizer


def _options(name: str, cls: type[Optimizer], text: str) -> dict[str, object]:
    accepted = parameters(cls)
    accepted.pop("params", None)
    options: dict[str, object] = {}
    for pair in filter(None, re.split(r",(?![^(]*\))", text)):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--optimizer {name}:{text} is not name:option=value,...", hint="write sgd:momentum=0.9")
        if key not in accepted:
            raise unknown_argument(key, {name: accepted}, "--optimizer")
        options[key] = convert(key, value, accepted[key], name, "--optimizer")
    return options
