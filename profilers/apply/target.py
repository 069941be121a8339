"""A target that runs by a plan: what it builds is applied to, and one of its steps is an optimizer step of one rank.

>>> from dnnmem.estimator.plan import Batch
>>> from dnnmem.profilers.step import plain_step
>>> import torch
>>> plain = Target(
...     name="line", make_model=lambda: torch.nn.Linear(2, 1), make_batch=lambda: torch.ones(4, 2),
...     make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
...     train_step=plain_step(lambda output, batch: output.mean()), batch={"batch_size": 4}, rescale=lambda b, s: plain,
... )
>>> type(applied_target(plain, Plan()).make_model()).__name__
'Linear'
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply import apply_to_model, apply_to_optimizer
from dnnmem.profilers.apply.pipeline import Pipelined
from dnnmem.profilers.apply.pipeline_api import cut_by, optimizer_by
from dnnmem.profilers.step import Target


def applied_target(target: Target, plan: Plan) -> Target:
    """`target` as `plan` has it. The model is to be built before the optimizer, once each, in one process a rank."""
    if plan.mesh.pp > 1:
        return _pipelined(target, plan)
    built: list[nn.Module] = []

    def make_model() -> nn.Module:
        model = apply_to_model(target.make_model(), plan)
        built[:] = [model]
        return model

    def make_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return apply_to_optimizer(target.make_optimizer(parameters), built[0], plan)

    def train_step(model: nn.Module, batch: Any, optimizer: Optimizer) -> object:
        loss: object = None
        for _ in range(plan.batch.accumulation):
            loss = None  # as in a loop, the last output is gone before the next one is made
            loss = target.train_step(model, batch, optimizer)
        return loss

    return replace(
        target, make_model=make_model, make_optimizer=make_optimizer, train_step=train_step,
        rescale=lambda batch, length: applied_target(target.rescale(batch, length), plan),
    )  # fmt: skip


def _pipelined(target: Target, plan: Plan) -> Target:
    """`target` as a rank of a pipeline: a step of it passes its batch through as often as the plan accumulates."""
    built: list[Pipelined] = []

    def make_model() -> nn.Module:
        model = target.make_model()
        built[:] = [cut_by(plan, model, target.train_step, target.make_batch())]
        return model

    def make_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return optimizer_by(plan, target.make_optimizer(parameters), built[0].model)

    def train_step(model: nn.Module, batch: Any, optimizer: Optimizer) -> object:
        del model
        return built[0].step([batch] * plan.batch.accumulation, optimizer)

    return replace(
        target, make_model=make_model, make_optimizer=make_optimizer, train_step=train_step,
        rescale=lambda batch, length: applied_target(target.rescale(batch, length), plan),
    )  # fmt: skip
