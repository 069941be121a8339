"""`gradients`: replicas send each other less than whole gradients, by hooks of DistributedDataParallel.

    compression    a hook of our own (`gradient_hooks`); on one stream, where torch's allocate on many
    local_steps    torch's `post_localSGD_hook`, which then sends nothing; parameters are averaged after the step

Neither the model's code nor the training loop changes.
"""

from __future__ import annotations

from itertools import chain, count

import torch
from torch import distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.optim import SGD, Optimizer

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Gradients, Plan
from dnnmem.profilers.apply.gradient_hooks import Hook
from dnnmem.profilers.apply.onebit import rest_second_moments
from dnnmem.profilers.apply.sharding import replica_of

_HOOK = "_dnnmem_gradients"
"""Attribute of a model that holds its hook."""


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model`, whose replicas send what `plan.gradients` says; unchanged for one rank."""
    wanted, replica = plan.gradients, replica_of(model)
    if replica is None or (wanted.compression == "none" and wanted.local_steps == 1):
        return model
    group = replica.process_group
    if wanted.local_steps > 1:
        state = PostLocalSGDState(group, None, wanted.warmup, post_local_gradient_allreduce=False)
        replica.register_comm_hook(state, post_localSGD_hook)
    else:
        hook = model.__dict__[_HOOK] = Hook(wanted, group)
        replica.register_comm_hook(None, lambda _, bucket: hook.send(bucket))
    return model


def to_optimizer(optimizer: Optimizer, model: nn.Module, plan: Plan) -> Optimizer:
    """`optimizer`, which averages parameters now and then, or rests its second moments."""
    wanted, replica = plan.gradients, replica_of(model)
    if replica is None:
        return optimizer
    if wanted.compression == "onebit":
        rest_second_moments(optimizer, model.__dict__[_HOOK])
    if wanted.compression == "dgc":
        _check_no_momentum(optimizer)
    if wanted.local_steps > 1:
        _average_parameters(optimizer, replica.process_group, wanted)
    return optimizer


def _check_no_momentum(optimizer: Optimizer) -> None:
    if type(optimizer) is not SGD or any(group["momentum"] for group in optimizer.param_groups):
        raise UnsupportedError(
            f"gradients.compression is dgc, which keeps the momentum of SGD itself, but the optimizer is "
            f"{type(optimizer).__name__}, with momentum or other states",
            hint="--set optimizer.name=sgd; or --set gradients.compression=topk",
        )


def _average_parameters(optimizer: Optimizer, group: ProcessGroup, wanted: Gradients) -> None:
    """After each `local_steps`-th step, in place: torch's `PeriodicModelAverager` would copy all of them."""
    steps = count(1)

    @torch.no_grad()
    def average(*_: object) -> None:
        behind = next(steps) - wanted.warmup
        if behind > 0 and behind % wanted.local_steps == 0:
            for p in chain.from_iterable(some["params"] for some in optimizer.param_groups):
                distributed.all_reduce(p.div_(group.size()), group=group)

    optimizer.register_step_post_hook(average)
