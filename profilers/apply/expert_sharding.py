"""FSDP2 of experts: each rank's experts are split over the ranks that hold the same ones, a group for each layer's.

    dp_shard 8, ep 2      blocks over 8 ranks; experts over the 4 of `dp_shard_mod_ep`
    gradients             of experts are sums over the tokens of all ep ranks: divided by all data ranks, as the others

torchtitan does the same (torchtitan/models/llama4/infra/parallelize.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.device_mesh import device_type
from dnnmem.profilers.apply.experts import expert_mesh, is_sent


def shard_experts(block: nn.Module, plan: Plan, policy: MixedPrecisionPolicy, *, reshard_after_forward: bool) -> None:
    """Split what `experts` has split further, before `fully_shard` takes `block`; nothing where there are none.

    Raises `UnsupportedError` where this torch cannot divide a group's gradients by another number than its size.
    """
    modules: list[Any] = [m for m in block.modules() if is_sent(m) and not isinstance(m, FSDPModule)]
    if not modules:
        return
    mesh = expert_mesh(plan)
    mesh = mesh["dp_replicate", "dp_shard_mod_ep"] if plan.mesh.dp_replicate > 1 else mesh["dp_shard_mod_ep"]
    for module in modules:
        fully_shard(
            module, mesh=mesh, reshard_after_forward=reshard_after_forward,
            mp_policy=replace(policy, cast_forward_inputs=False),
        )  # fmt: skip
        if not hasattr(module, "set_gradient_divide_factor"):
            raise UnsupportedError(
                f"ep {plan.mesh.ep} needs set_gradient_divide_factor of FSDP2, which torch {torch.__version__} has not",
                hint="torch 2.8 has it",
            )
        module.set_gradient_divide_factor(float(plan.mesh.data_ranks))
        if device_type() == "cpu" and plan.mesh.dp_shard > plan.mesh.ep:  # gloo has sums only; one rank sends none
            module.set_force_sum_reduction_for_comms(True)
