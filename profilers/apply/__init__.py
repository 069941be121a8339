"""Applies: each does to a real model what the pass of the same name predicts.

    model -> precision -> loss -> tensor -> context -> remat -> offload -> sharding -> gradients     before optimizers
    optimizer over those -> optimizer -> precision -> sharding -> gradients -> offload -> batch   or re-aimed

Neither the model's code nor the training loop changes: the loop calls `model(...)`, `loss.backward()`,
`optimizer.step()` and `optimizer.zero_grad()` as before, and what has to happen besides hangs on these calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Kernels, Plan, Precision
from dnnmem.profilers.apply import (
    batch,
    compression,
    context,
    experts,
    gradients,
    loss,
    offload,
    offload_optimizer,
    offload_parameters,
    optimizer,
    precision,
    remat,
    sharding,
    tensor,
)
from dnnmem.profilers.apply.entrance import by_calls

ToModel = Callable[[nn.Module, Plan], nn.Module]
"""Does its part to a model and returns it, or what wraps it."""
ToOptimizer = Callable[[Optimizer, nn.Module, Plan], Optimizer]
"""Does its part to the optimizer of an applied model and returns it, or another one in its place."""

MODEL_APPLIES: Mapping[str, ToModel] = {
    "precision": precision.to_model,
    "loss": loss.to_model,
    "tensor": tensor.to_model,
    "context": context.to_model,
    "experts": experts.to_model,
    "offload_parameters": offload_parameters.to_model,
    "remat": remat.to_model,
    "compression": compression.to_model,
    "offload": offload.to_model,
    "sharding": sharding.to_model,
    "gradients": gradients.to_model,
    "context_output": context.to_output,
}
"""By field of a plan, in the order in which they are done. Each leaves a model alone where the plan has its default."""
OPTIMIZER_APPLIES: Mapping[str, ToOptimizer] = {
    "optimizer": optimizer.to_optimizer,
    "precision": precision.to_optimizer,
    "sharding": sharding.to_optimizer,
    "gradients": gradients.to_optimizer,
    "offload": offload_optimizer.to_optimizer,
    "batch": batch.to_optimizer,
}
"""The same for optimizers."""


def apply_to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with all that `plan` asks of a model done to it; its parameters may be others afterwards.

    With more than one rank the process group exists already. Raises `UsageError` and `UnsupportedError`.
    """
    _check_known(plan)
    merged = from_context(plan)
    if plan != Plan():
        model = by_calls(model, once=plan.batch.accumulation > 1 or plan.precision != Precision())
    for field, done in MODEL_APPLIES.items():
        model = done(model, plan if field.startswith("context") else merged)
    return model


def apply_to_optimizer(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """`optimizer`, made over the parameters of an applied `model`, with all that `plan` asks of it done to it."""
    merged = from_context(plan)
    for done in OPTIMIZER_APPLIES.values():
        optimizer = done(optimizer, model, merged)
    return optimizer


def _check_known(plan: Plan) -> None:
    """Raise `UnsupportedError` for what no apply does yet; `dnnmem estimate` predicts it all the same."""
    mesh = plan.mesh
    if mesh.pp > 1:
        raise UnsupportedError(
            f"pp {mesh.pp}: a loop's calls cannot be a pipeline's, whose micro-batches go through it beside each other",
            hint="dnnmem.pipeline(model, optimizer, plan, step=step, batch=batch) gives what makes its steps",
        )
    if plan.kernels != Kernels():
        raise UnsupportedError(
            f"kernels.fusion {plan.kernels.fusion} and graphs {str(plan.kernels.graphs).lower()} can be estimated, but "
            "not applied yet",
            hint="torch.compile(model) does it by hand",
        )
