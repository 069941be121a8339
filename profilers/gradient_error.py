"""How far a plan that loses something is from the plain gradients: one step of the target on the CPU, both ways.

    python -m dnnmem.profilers.gradient_error REQUEST.json PLAN.json OUT.json      writes the error, a share

The model is as it is built, with a batch of two samples as its target makes them; weights, batch and the random numbers
that it draws are the same both times. The error is  |g' - g| / |g|  over the gradients of all parameters.
"""

from __future__ import annotations

import json
import os
import random
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import from_json
from dnnmem.estimator.units import format_bytes
from dnnmem.profilers.apply import compression, remat
from dnnmem.profilers.request import Request
from dnnmem.profilers.step import Target
from dnnmem.profilers.target import resolve

SAMPLES = 2
"""Of the batch."""
_COPIES = 8
"""Sizes of the parameters that both steps need at most, activations of two samples among them."""


class _StopError(Exception):
    """The gradients are there."""


def gradient_error(request: Request, plan: Plan) -> float:
    """Relative error of all gradients under what `plan` compresses. Raises `UnsupportedError` for want of memory."""
    target = resolve(replace(request, batch_size=SAMPLES))
    _check_memory(target)
    plain = _gradients(target, Plan(), request.seed)
    found = _gradients(target, Plan(remat=plan.remat, compression=plan.compression), request.seed)
    apart = sum(float((a - b).float().square().sum()) for a, b in zip(found, plain, strict=True))
    whole = sum(float(b.float().square().sum()) for b in plain)
    return float((apart / whole) ** 0.5) if whole else 0.0


def _gradients(target: Target, plan: Plan, seed: int) -> list[Tensor]:
    """Those of the first step, in the order of the parameters."""
    random.seed(seed)
    torch.manual_seed(seed)
    model = target.make_model()
    for apply in (remat.to_model, compression.to_model):
        model = apply(model, plan)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    optimizer.register_step_pre_hook(_stop)
    batch = target.make_batch()
    torch.manual_seed(seed)
    with suppress(_StopError):
        target.train_step(model, batch, optimizer)
    return [torch.zeros(()) if p.grad is None else p.grad for p in parameters]


def _stop(*_given: Any) -> None:
    raise _StopError


def _check_memory(target: Target) -> None:
    """Raise `UnsupportedError` if two steps of the model would take most of the host's memory."""
    try:
        with torch.device("meta"):
            model: nn.Module = target.make_model()
    except (NotImplementedError, RuntimeError):
        return  # its code reads values: it is built as it is
    needed = _COPIES * sum(p.numel() * p.element_size() for p in model.parameters())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise UnsupportedError(
            f"two steps on the CPU would need about {format_bytes(needed)}, and {format_bytes(free)} are free"
        )


def main(argv: list[str]) -> None:
    """Write what is found."""
    request = Request.from_json(Path(argv[0]).read_text("utf-8"))
    plan = from_json(json.loads(Path(argv[1]).read_text("utf-8")), argv[1])
    Path(argv[2]).write_text(json.dumps({"gradient_error": gradient_error(request, plan)}), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
