"""`loss`: a cross entropy by chunks of rows, with `fused` the product that makes its logits too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Loss, Plan

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.trace import Trace


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with its cross entropy as `plan.loss` says; unchanged where that is the default."""
    del cluster
    if plan.loss == Loss():
        return trace
    check_loss(plan)
    raise UnsupportedError("loss cannot be estimated yet")


def check_loss(plan: Plan) -> None:
    """Raise `UnsupportedError` for what does not go together with a loss by chunks."""
    if plan.precision.compute == "fp16_amp":
        raise UnsupportedError(
            "loss.chunks and loss.fused make gradients of logits before fp16_amp's scale is known to them",
            hint="--set precision.compute=bf16_amp",
        )
    if plan.loss.fused and plan.splits_parameters:
        raise UnsupportedError(
            f"loss.fused needs the whole vocabulary's matrix when the loss is taken, but {plan.sharding.strategy} has "
            "let go of it",
            hint="--set loss.fused=false --set loss.chunks=8",
        )
    if plan.mesh.tp > 1:
        raise UnsupportedError(
            f"loss.chunks and loss.fused need all logits of a row, which tp {plan.mesh.tp} splits",
            hint="--set tensor.loss_parallel=true, and leave them out",
        )
