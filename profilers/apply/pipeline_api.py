"""`dnnmem.pipeline`: a plan with stages done to the user's own model, optimizer and training step.

    rank = dnnmem.pipeline(model, optimizer, "plan.json", step=train_step, batch=batch)

    for batches in loader:                     # as many micro-batches as the plan accumulates
        loss = rank.step(batches)              # forward, backward, update, zero_grad; None but on the last stage

`train_step(model, batch, optimizer)` is the loop's body as it is without a plan: what it does up to `loss.backward()`
runs for each micro-batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Pipeline, Plan, check
from dnnmem.profilers.apply import MODEL_APPLIES, apply_to_optimizer
from dnnmem.profilers.apply.api import read_plan
from dnnmem.profilers.apply.pipeline import Pipelined, check_pipeline

_OF_A_STAGE = ("context", "context_output", "tensor", "experts", "sharding", "gradients")
"""What is done to stages once the model is cut, or not at all."""


@dataclass(slots=True, kw_only=True)
class PipelineRank:
    """A process's part of a pipeline."""

    model: nn.Module
    """What is left of the model here: its blocks, by the names they had."""
    optimizer: Optimizer
    """Over those."""
    stages: Pipelined
    """Those of this rank."""

    def step(self, batches: Sequence[Any]) -> Tensor | None:
        """One optimizer step on the micro-batches of a step; their mean loss where the last stage is."""
        return self.stages.step(batches, self.optimizer)


def pipeline(
    model: nn.Module,
    optimizer: Optimizer,
    plan: Plan | Mapping[str, Any] | str | os.PathLike[str],
    *,
    step: Callable[[Any, Any, Any], object],
    batch: Any,
) -> PipelineRank:
    """Do what `plan` says to `model` and `optimizer`, in each process once its group exists and its device is set.

    Args: `step(model, batch, optimizer)` is the body of the training loop; `batch` is a micro-batch, for its shapes.
    Raises `UsageError` for a plan without stages or an optimizer that has made steps, `UnsupportedError` for what is
    predicted only.
    """
    wanted = plan if isinstance(plan, Plan) else read_plan(plan)
    check(wanted)
    if wanted.mesh.pp == 1:
        raise UsageError("the plan has no stages: mesh.pp is 1", hint="dnnmem.apply(model, optimizer, plan) does it")
    if optimizer.state:
        raise UsageError(
            f"the optimizer holds states of {len(optimizer.state)} parameters already",
            hint="apply the plan before the first step; load the optimizer's states afterwards",
        )
    names: dict[int, list[str]] = {}  # a tied weight has several
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    stages = cut_by(wanted, model, step, batch)
    left = dict(stages.model.named_parameters(remove_duplicate=False))
    for group in optimizer.param_groups:
        kept = (left[name] for p in group["params"] for name in names.get(id(p), ()) if name in left)
        group["params"] = list({id(p): p for p in kept}.values())
    return PipelineRank(model=stages.model, optimizer=optimizer_by(wanted, optimizer, stages.model), stages=stages)


def cut_by(plan: Plan, model: nn.Module, step: Callable[..., object], batch: Any) -> Pipelined:
    """The stages of this rank, with all that `plan` asks of a model done to them; of `model` the rest goes."""
    check_pipeline(plan)
    alone = _of_a_stage(plan)
    for field, done in MODEL_APPLIES.items():
        model = model if field in _OF_A_STAGE else done(model, alone)
    return Pipelined(model, plan, step, batch)


def optimizer_by(plan: Plan, optimizer: Optimizer, model: nn.Module) -> Optimizer:
    """`optimizer`, over what is left of a cut `model`, with all that `plan` asks of it done to it."""
    return apply_to_optimizer(optimizer, model, replace(_of_a_stage(plan), mesh=plan.mesh))


def _of_a_stage(plan: Plan) -> Plan:
    """What is done to a stage as to a model."""
    return replace(plan, mesh=replace(plan.mesh, pp=1), batch=replace(plan.batch, accumulation=1), pipeline=Pipeline())
