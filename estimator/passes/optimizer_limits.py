"""What of an optimizer cannot be under which other fields of a plan, and what to do instead.

    elements            any rank can update any part of a parameter     sgd, momentum, adamw, lion
    blocks of elements  a kernel that takes tensors of one rank alone   adamw8bit_bnb
    rows and columns    means of them; torch has none over parts        adafactor
    lengths             norms                                           lamb, lars
    matrices            products, eigenvectors                          muon, shampoo, soap, galore

Ranks that hold whole parameters (ddp, zero1 as PyTorch has it) can do all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan

_STATELESS = ("sgd", "adafactor", "adamw8bit", "adamw8bit_bnb", "shampoo")
"""Optimizers without moments of one entry an element in float32."""


def check_limits(name: str, needs: str, plan: Plan) -> None:
    """Raise `UnsupportedError` where `plan` cannot have its optimizer.

    Args: `name`: what messages call it; `needs`: as `Rule.needs` has it.
    """
    if needs != "elements":
        _check_parts(name, needs, plan)
    if plan.optimizer.state:
        _check_state(name, plan)
    if plan.optimizer.in_backward:
        _check_in_backward(plan)


def _check_parts(name: str, needs: str, plan: Plan) -> None:
    sharding, mesh = plan.sharding, plan.mesh
    if mesh.tp > 1:
        raise UnsupportedError(
            f"{name} works on whole parameters ({needs}), but with mesh.tp {mesh.tp} ranks hold parts of them",
            hint="leave mesh.tp 1, or take another optimizer: --set optimizer.name=adamw",
        )
    flat = sharding.even_parts and sharding.strategy in ("zero1", "zero2") and mesh.data_ranks > 1
    if plan.splits_parameters or flat:
        raise UnsupportedError(
            f"{name} works on whole parameters ({needs}), but with sharding.strategy {sharding.strategy} each of "
            f"{mesh.data_ranks} ranks holds parts of them",
            hint="--set sharding.strategy=zero1 gives each rank whole ones; or --set optimizer.name=adamw",
        )


def _check_state(name: str, plan: Plan) -> None:
    if name in _STATELESS:
        raise UnsupportedError(
            f"optimizer.state is {plan.optimizer.state}, but {name} has no moments in float32",
            hint="leave optimizer.state out, or take another optimizer: --set optimizer.name=adamw",
        )
    if plan.sharding.strategy == "zero1" and plan.mesh.data_ranks > 1:
        raise UnsupportedError(
            f"optimizer.state is {plan.optimizer.state}, which zero1 cannot have: ZeroRedundancyOptimizer makes the "
            "optimizer anew",
            hint="--set sharding.strategy=zero2, which holds the states in parts as well",
        )


def _check_in_backward(plan: Plan) -> None:
    precision, mesh = plan.precision, plan.mesh
    reasons = {
        f"batch.accumulation {plan.batch.accumulation}: gradients are sums of several passes": plan.batch.accumulation
        > 1,
        f"{mesh.world_size} ranks: gradients are to be sent first": mesh.world_size > 1,
        "fp16's loss scaling, which looks at all gradients first": precision.compute == "fp16_amp",
        "master weights, which are updated at the end": precision.param is not None,
        "offload.optimizer: the host updates at the end": plan.offload.optimizer,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedError(
                f"optimizer.in_backward cannot be with {reason}", hint="leave optimizer.in_backward out"
            )
