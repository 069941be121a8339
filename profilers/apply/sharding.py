"""Data parallelism for real: what the sharding passes predict, by PyTorch's own means, on the user's model in place.

    ddp      DistributedDataParallel, hung on the model by hooks: the model stays what it is, names and all
    zero1    the same, and each rank updates the parameters that are its own (ZeroRedundancyOptimizer)
    zero2    FSDP2 that gathers parameters once a step, and drops them after the backward pass
    zero3    FSDP2: each block is a group, what is outside of blocks another; with `dp_replicate` above 1 HSDP

With several micro-batches ddp and zero1 send gradients once, after the last (`sync_gradients`); FSDP2 sums its parts
each time, so that whole gradients never stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes.replicas import DEFAULT_BUCKET_MIB
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.beside_blocks import beside_blocks
from dnnmem.profilers.apply.device_mesh import check_ranks, device_mesh, device_type
from dnnmem.profilers.apply.entrance import only_by_calls
from dnnmem.profilers.apply.expert_sharding import shard_experts
from dnnmem.profilers.apply.loss_scaling import LossScaling
from dnnmem.profilers.apply.master_weights import over_masters
from dnnmem.profilers.apply.pipeline_stage import Stage
from dnnmem.profilers.found_blocks import blocks_of
from dnnmem.profilers.planned_model import fill

_REPLICA = "_dnnmem_replica"
"""Attribute of a model that holds its DistributedDataParallel."""


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with hooks that share its work among `plan.mesh.data_ranks`; unchanged for one rank.

    Raises `UsageError` without a process group of that size, `UnsupportedError` for what is predicted only.
    """
    if plan.sharding.strategy == "none" or plan.mesh.data_ranks == 1:
        return model
    _check(plan)
    if plan.splits_parameters:
        _shard(model, plan)
    else:
        _replicate(model, plan)
    if not isinstance(model, Stage):
        only_by_calls(model, parameters=not plan.splits_parameters)
    return model


def to_optimizer(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """For zero1, an optimizer of the same class that updates this rank's parameters and fetches the others.

    Raises `UsageError` if `optimizer` has made steps already.
    """
    if not shares_update(plan):
        return optimizer
    if optimizer.state:
        raise UsageError(
            f"the optimizer holds states of {len(optimizer.state)} parameters already",
            hint="apply the plan before the first step; load states afterwards",
        )
    known = inspect.signature(type(optimizer).__init__).parameters
    defaults: dict[str, Any] = {name: value for name, value in optimizer.defaults.items() if name in known}
    group = device_mesh(plan)["dp_shard"].get_group()
    split = ZeroRedundancyOptimizer(
        [dict(some) for some in optimizer.param_groups], type(optimizer), process_group=group, **defaults
    )
    if plan.precision.compute == "fp16_amp":
        LossScaling.find(model).attach(split)
    if plan.precision.param is not None:
        _over_own_masters(split, plan)
    return split


def shares_update(plan: Plan) -> bool:
    """Whether each rank updates some of the parameters, and sends them to the others."""
    return plan.sharding.strategy == "zero1" and plan.mesh.dp_shard > 1


def _over_own_masters(split: ZeroRedundancyOptimizer, plan: Plan) -> None:
    """Masters of the rank's own parameters; what is sent is what the model computes with."""
    own: Any = split.optim
    own.param_groups = [{**group, "params": [*group["params"]]} for group in own.param_groups]  # `split` sends by these
    over_masters(own, plan.precision)
    zero_grad: Any = split.zero_grad

    def zero_both(set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - the optimizer's own signature
        zero_grad(set_to_none)
        own.zero_grad(set_to_none)

    split.zero_grad = zero_both  # type: ignore[method-assign]


def replica_of(model: nn.Module) -> Any:
    """The DistributedDataParallel that hangs on an applied `model`, or None."""
    return getattr(model, _REPLICA, None)


def sync_gradients(model: nn.Module, on: bool) -> None:  # noqa: FBT001  (the switch is all there is)
    """Whether the next backward pass of an applied `model` sends gradients; FSDP2 sums its parts always."""
    replica = replica_of(model)
    if replica is not None:
        replica.require_backward_grad_sync = on


def _check(plan: Plan) -> None:
    for name, usual in (("overlap", True), ("even_parts", False)):
        if getattr(plan.sharding, name) is not usual:
            raise UnsupportedError(
                f"sharding.{name}={str(not usual).lower()} is predicted only: PyTorch does not do it",
                hint=f"--set sharding.{name}={str(usual).lower()}",
            )
    check_ranks(plan)
    alone = plan.splits_parameters and plan.offload.parameters and plan.precision.compute == "fp16_amp"
    if alone and "cpu:" not in (known := distributed.get_backend_config()):
        raise UnsupportedError(
            "under fp16_amp ranks tell each other of gradients that are not finite; offload.parameters keeps those on "
            f"the host, which the process group ({known}) cannot send from",
            hint="init_process_group('cpu:gloo,cuda:nccl'), or --set precision.compute=bf16_amp",
        )


def _replicate(model: nn.Module, plan: Plan) -> None:
    """Let a DistributedDataParallel do around each call of the model what it does around its own."""
    if any(p.is_meta for p in model.parameters()):  # rank 0's are sent to the others now
        fill(model, torch.device(device_type()))
    size = plan.sharding.bucket_mib
    replica: Any = DistributedDataParallel(
        model, bucket_cap_mb=None if size == DEFAULT_BUCKET_MIB else size, process_group=_replicas(plan),
        gradient_as_bucket_view=plan.sharding.bucket_views,
    )  # fmt: skip
    model.__dict__[_REPLICA] = replica  # no submodule: the model is one of it
    if isinstance(model, Stage):  # PyTorch's pipelines call the replica itself
        return
    model.register_forward_pre_hook(lambda _, args, named: replica._pre_forward(*args, **named), with_kwargs=True)
    model.register_forward_hook(lambda _, __, output: replica._post_forward(output))


def _replicas(plan: Plan) -> distributed.ProcessGroup | None:
    """The ranks that hold the same parameters; None = all of them."""
    if plan.mesh.data_ranks == plan.mesh.world_size:
        return None
    mesh = device_mesh(plan)
    names = [name for name in ("dp_replicate", "dp_shard") if getattr(plan.mesh, name) > 1]
    if len(names) > 1:
        raise UnsupportedError(
            f"{plan.sharding.strategy} over dp_replicate {plan.mesh.dp_replicate} and dp_shard {plan.mesh.dp_shard} "
            f"beside tp {plan.mesh.tp} is predicted only",
            hint="leave one of the two 1",
        )
    return mesh[names[0]].get_group()


def _shard(model: Any, plan: Plan) -> None:
    """FSDP2 on each block, then on what is left; a pipeline's stage knows its blocks, of which there may be one."""
    mesh, stage = device_mesh(plan), isinstance(model, Stage)
    options: dict[str, Any] = {
        "mesh": mesh["dp_replicate", "dp_shard"] if plan.mesh.dp_replicate > 1 else mesh["dp_shard"],
        "mp_policy": _policy(model, plan),
    }
    if plan.offload.parameters:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
    sharding = plan.sharding
    drops = sharding.strategy == "zero3" and sharding.reshard_after_forward
    before, after = ([], []) if not sharding.split_root else model.sides if stage else beside_blocks(model)
    blocks = [*model.parts] if stage else [block for _, block in blocks_of(model)]
    groups = [*([before] if before else []), *([block] for block in blocks), *([after] if after else [])]
    for number, modules in enumerate(groups, 1):
        kept = sharding.keep_last and number == len(groups)
        for module in modules:
            shard_experts(module, plan, options["mp_policy"], reshard_after_forward=drops and not kept)
        fully_shard(modules if len(modules) > 1 else modules[0], reshard_after_forward=drops and not kept, **options)
    shard_experts(model, plan, options["mp_policy"], reshard_after_forward=drops)
    fully_shard(model, reshard_after_forward=False, **options)
    _gather_ahead(model, [modules[0] for modules in groups], sharding.prefetch)


def _gather_ahead(model: nn.Module, groups: Sequence[Any], depth: int) -> None:
    """Let the model and each of its groups begin to gather the next ones, in either pass."""
    forward: list[Any] = [model, *groups]
    backward: list[Any] = [model, *reversed(groups)]
    for n in range(len(forward) if depth else 0):
        forward[n].set_modules_to_forward_prefetch(forward[n + 1 : n + 1 + depth])
        backward[n].set_modules_to_backward_prefetch(backward[n + 1 : n + 1 + depth])


def _policy(model: nn.Module, plan: Plan) -> MixedPrecisionPolicy:
    """Types to compute and to reduce in; the model's parameters get the type that they rest in."""
    precision = plan.precision
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    compute = torch.bfloat16 if precision.compute == "bfloat16" else own
    rest = getattr(torch, precision.param) if precision.param else compute
    if precision.grad and getattr(torch, precision.grad) != rest:
        raise UnsupportedError(
            f"precision.grad is {precision.grad}, but FSDP2 keeps gradients in the type of the parameters, "
            f"{str(rest).removeprefix('torch.')}",
            hint="leave precision.grad out",
        )
    _rest_in(model, rest)
    wire = precision.reduce or precision.grad
    reduce = getattr(torch, wire) if wire else None
    return MixedPrecisionPolicy(param_dtype=compute if compute != rest else None, reduce_dtype=reduce)


def _rest_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast floating parameters, in place where they are plain: what tensor parallelism split is another one then."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if not p.is_floating_point() or p.dtype == dtype:
                continue
            if not isinstance(p, DTensor):
                p.data = p.data.to(dtype)
                continue
            if p not in made:
                made[p] = nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad)
            module.register_parameter(name, made[p])
