"""`experts`: each rank of an ep group holds some experts of every layer; tokens go to them and come back.

    router -> chosen, weights --[route]--> rows to their ranks -> the module, as it is, over its own experts -> back

Neither the model's code nor the loop changes: hooks around each module of experts send what it is given and bring back
what it makes. Parameters are DTensors split over `ep`; FSDP2 then splits them further over the ranks that hold the same
experts (`dp_shard_mod_ep`, torchtitan's name). Ranks of an ep group are neighbours, each with samples of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import SAC_IGNORED_OPS

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Experts, Plan
from dnnmem.profilers.apply.device_mesh import check_ranks, device_type
from dnnmem.profilers.apply.expert_modules import COUNT, arguments_of, find_experts
from dnnmem.profilers.apply.expert_rows import Route, give_back, route, send
from dnnmem.profilers.virtual import is_virtual

_known: dict[tuple[int, ...], tuple[object, DeviceMesh]] = {}
_SENT = "_dnnmem_sent"
"""Attribute of a module of experts that has hooks."""


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with its experts in parts over `plan.mesh.ep` ranks, in place; unchanged for one.

    Raises `UsageError` without a process group of the plan's size, `UnsupportedError` for a model without experts, for
    numbers of them that ep does not divide, and for what is predicted only.
    """
    if plan.mesh.ep == 1:
        return model
    _check(plan)
    _uncount_labels()
    mesh = expert_mesh(plan)["ep"]
    for module in find_experts(model, plan.mesh.ep).modules.values():
        _Sent(module, mesh, plan.experts).attach()
    return model


def is_sent(module: nn.Module) -> bool:
    """Whether `module` holds experts of which this rank has a part."""
    return _SENT in module.__dict__


def expert_mesh(plan: Plan) -> DeviceMesh:
    """The ranks as experts see them: `pp`, `dp_replicate`, `dp_shard_mod_ep`, `ep`; one object for the same degrees."""
    check_ranks(plan)
    mesh = plan.mesh
    sizes = (mesh.pp, mesh.dp_replicate, mesh.dp_shard // mesh.ep, mesh.ep)
    group = distributed.group.WORLD
    if sizes not in _known or _known[sizes][0] is not group:
        names = ("pp", "dp_replicate", "dp_shard_mod_ep", "ep")
        _known[sizes] = (group, init_device_mesh(device_type(), sizes, mesh_dim_names=names))
    return _known[sizes][1]


def _check(plan: Plan) -> None:
    mesh = plan.mesh
    if mesh.tp > 1:
        raise UnsupportedError(
            f"ep {mesh.ep} beside tp {mesh.tp}: all {mesh.tp} ranks of a tp group have the same tokens, and each would "
            f"send them, so that an expert's gradient would be {mesh.tp} times what it is",
            hint="--set mesh.tp=1",
        )
    if not plan.experts.grouped:
        raise UnsupportedError(
            "experts.grouped=false is predicted only: a module's products are its own",
            hint="transformers: model.set_experts_implementation('eager')",
        )


def _uncount_labels() -> None:
    """FSDP2 labels what it does inside of a block for the profiler, and not as often when the block runs again.

    Selective checkpoints count all operators of a block; torch has a set of those that they leave alone.
    """
    labels = torch.ops.profiler
    SAC_IGNORED_OPS.update({labels._record_function_enter_new.default, labels._record_function_exit._RecordFunction})


class _Sent:
    """One module of experts, with hooks that send its tokens."""

    def __init__(self, module: nn.Module, mesh: DeviceMesh, wanted: Experts) -> None:
        self.module, self.mesh, self.capacity = module, mesh, wanted.capacity
        self.busier = wanted.imbalance if is_virtual() else 1.0
        """On a GPU the router decides; on a virtual one nobody knows what it does, and the plan says it."""
        self.experts: int = getattr(module, COUNT)
        self.names = arguments_of(module)
        self.ways: list[tuple[Route, int]] = []
        """Of the call that runs: how its tokens went, and choices of each."""

    def attach(self) -> None:
        """Split the parameters, and hang the hooks on."""
        count = self.experts // self.mesh.size()
        first = self.mesh.get_local_rank() * count
        for holder in self.module.modules():
            for name, p in list(holder.named_parameters(recurse=False)):
                part = p.detach()[first : first + count].clone()
                if not part.is_meta:
                    part = part.to(self.mesh.device_type)
                split = DTensor.from_local(part, self.mesh, [Shard(0)], run_check=False)
                holder.register_parameter(name, nn.Parameter(split, requires_grad=p.requires_grad))
        setattr(self.module, COUNT, count)
        self.module.__dict__[_SENT] = self
        self.module.register_forward_pre_hook(self._before, with_kwargs=True)
        self.module.register_forward_hook(self._after, always_call=True)

    def _before(self, _: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        tokens, chosen, weights = (*args, *(named[name] for name in self.names[len(args) :]))
        choices = chosen.shape[-1]
        way = route(chosen, self.experts, self.mesh.get_group(), self.capacity, self.busier)
        self.ways.append((way, choices))
        for holder in self.module.modules():
            for name, p in holder.named_parameters(recurse=False):
                holder.__dict__[name] = p.to_local() if isinstance(p, DTensor) else p  # found before the parameter
        rows = send(tokens, way, choices)
        return (rows, way.chosen[:, None], send(weights.reshape(-1), way)[:, None]), {}

    def _after(self, _: nn.Module, __: object, made: Tensor) -> Tensor | None:
        for holder in self.module.modules():
            for name, _p in holder.named_parameters(recurse=False):
                holder.__dict__.pop(name, None)
        if not self.ways:
            return None
        way, choices = self.ways.pop()
        return give_back(made, way, choices) if isinstance(made, Tensor) else None
