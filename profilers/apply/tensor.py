"""`tensor`: each rank holds a part of the blocks' matrices and of the vocabulary's, by DTensor's `parallelize_module`.

    plain                what runs between blocks is a plain tensor, whole on every rank
    sequence_parallel    it is a DTensor split along the sequence, gathered before columns, scattered after rows
    loss_parallel        logits stay split: a DTensor, of which torch's own cross entropy takes the loss

Neither the model's code nor the loop changes; ranks of one tp group read the same samples. Matrices that make queries,
keys and values at once are held part by part of each: `state_dict()` has their rows in the order of the ranks.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle, loss_parallel, parallelize_module

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.device_mesh import device_mesh
from dnnmem.profilers.apply.layout import lay_out
from dnnmem.profilers.apply.tensor_heads import divide_heads
from dnnmem.profilers.apply.tensor_roles import Roles, find_roles, sizes
from dnnmem.profilers.apply.tensor_styles import Style, Table

_losses: list[Any] = []
"""Torch's own cross entropy over parts of a vocabulary, once it is on: for DTensors only, and to the end."""


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with its matrices in parts over `plan.mesh.tp` ranks, in place; unchanged for one.

    Raises `UsageError` without a process group of the plan's size, `UnsupportedError` for a model without pairs of
    linear layers, for sizes that tp does not divide, and for what is predicted only.
    """
    tp = plan.mesh.tp
    if tp == 1:
        return model
    _check(plan)
    roles = find_roles(model)
    if not roles.rows:
        raise UnsupportedError(
            f"tp is {tp}, but {type(model).__name__} has no pair of linear layers in blocks to split",
            hint="--set mesh.tp=1",
        )
    _check_sizes(model, roles, tp)
    mesh = device_mesh(plan)["tp"]
    tied = _tied(model)
    _split(model, roles, plan, mesh)
    _tie(tied)
    if not any(p.is_meta for p in model.parameters()):
        model.to(mesh.device_type)  # what no style has moved
        if _is_local(plan):  # whole matrices were on the GPU on the way: their segments are given back
            lay_out(model)
    divide_heads(model, roles.columns, tp)
    if plan.tensor.loss_parallel and roles.head and not _losses:
        _losses.append(loss_parallel())
        _losses[0].__enter__()
    return model


def _check(plan: Plan) -> None:
    tensor = plan.tensor
    if tensor.sequence_parallel and not tensor.keep_gathered:
        raise UnsupportedError(
            "tensor.sequence_parallel that gathers again for gradients is predicted only: DTensor keeps them",
            hint="--set tensor.keep_gathered=true",
        )
    if tensor.async_tp:
        raise UnsupportedError(
            "tensor.async_tp is predicted only: torch does it inside torch.compile, on symmetric memory of GPUs",
            hint="--set tensor.async_tp=false; by hand: torch._inductor.config._micro_pipeline_tp = True, then compile",
        )
    if plan.offload.activations == "conv":
        raise UnsupportedError(
            "offload.activations conv sends inputs of convolutions, which no rank holds a part of",
            hint="--set offload.activations=all",
        )
    if plan.offload.parameters and not plan.splits_parameters:
        raise UnsupportedError(
            f"offload.parameters moves whole parameters, but tp {plan.mesh.tp} splits them", hint="--set mesh.tp=1"
        )


def _check_sizes(model: nn.Module, roles: Roles, tp: int) -> None:
    for name, parts in roles.columns.items():
        for part in parts:
            if part % tp:
                raise UnsupportedError(
                    f"{name} makes {part} features; {part} % tp {tp} = {part % tp}, but it must be 0"
                )
    for name in roles.rows:
        takes = (sizes(model.get_submodule(name)) or (0, 0))[0]
        if takes % tp:
            raise UnsupportedError(f"{name} takes {takes} features; {takes} % tp {tp} = {takes % tp}, but it must be 0")


def _split(model: nn.Module, roles: Roles, plan: Plan, mesh: DeviceMesh) -> None:
    """The styles of all modules with parameters, and of those that several columns take their input in."""
    sequence = plan.tensor.sequence_parallel
    stream = Shard(0 if plan.tensor.sequence_first else 1) if sequence else Replicate()
    local = _is_local(plan)
    between: dict[str, Any] = {"plain_output": not sequence, "local": local}
    styles: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        if name in roles.columns:
            styles[name] = Style(
                params=_placed(module, 0), parts=roles.columns[name], wanted=Replicate(), local=local
            )  # fmt: skip
        elif name in roles.rows:
            styles[name] = Style(params=_placed(module, 1), taken=Shard(-1), given=stream, **between)
        elif name in roles.tables:
            styles[name] = Table(params={"weight": Shard(0)}, given=stream, **between)
        elif name == roles.head:
            given, kept = (Shard(-1), False) if plan.tensor.loss_parallel else (Replicate(), True)
            styles[name] = Style(
                params=_placed(module, 0), wanted=Replicate(), given=given, plain_output=kept, local=local
            )
        elif isinstance(module, nn.Linear | nn.Embedding) or _is_norm(module):
            styles[name] = _whole(name, model, roles, {**between, "all_taken": isinstance(module, nn.Embedding)})
    for name, columns in _holders(roles).items():
        if len(columns) > 1 and name not in styles:
            styles[name] = Style(params=None, wanted=Replicate(), plain_output=False)
    for name, style in styles.items():  # one by one: of paths torch 2.6 tries every tail, `0` of `mlp.0` too
        parallelize_module(model.get_submodule(name), mesh, style)


def _is_local(plan: Plan) -> bool:
    """True where parts are plain tensors between calls: DistributedDataParallel takes no others."""
    return plan.mesh.data_ranks > 1 and not plan.splits_parameters


def _placed(module: nn.Module, dim: int) -> dict[str, Shard]:
    """Where a linear layer is split: 0 by what it makes, 1 by what it takes."""
    flipped = not isinstance(module, nn.Linear)  # transformers' Conv1D: the matrix is (in, out)
    weight = {"weight": Shard(1 - dim if flipped else dim)}
    return weight if dim else {**weight, "bias": Shard(0)}


def _is_norm(module: nn.Module) -> bool:
    """One that treats each position by itself."""
    name = type(module).__name__.lower()
    leaf = not list(module.children()) and bool(list(module.parameters()))
    return leaf and "norm" in name and "batch" not in name


def _whole(name: str, model: nn.Module, roles: Roles, between: dict[str, Any]) -> Style:
    """Parameters that all ranks hold; of norms over each head's features they see a rank's heads."""
    columns, module = _holders(roles).get(name.rpartition(".")[0], []), model.get_submodule(name)
    if not columns or not _is_norm(module):
        return Style(**between)
    size = max(p.numel() for p in module.parameters())
    if size in {(sizes(model.get_submodule(column)) or (0, 0))[0] for column in columns}:  # of what columns take
        return Style(**between)
    if any(size in roles.columns[column] for column in columns):
        raise UnsupportedError(
            f"{name} is a norm over {size} features, all that {columns[0]} makes: a rank has a part of them only",
            hint="--set mesh.tp=1",
        )
    return Style(taken=Shard(2), local=bool(between["local"]))


def _holders(roles: Roles) -> dict[str, list[str]]:
    """Modules that hold columns, each with them: the columns take the same input."""
    found: dict[str, list[str]] = {}
    for name in roles.columns:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _tied(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """Parameters that several modules share, each with its places."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            places.setdefault(id(param), []).append((module, name))
    return [found for found in places.values() if len(found) > 1]


def _tie(tied: list[list[tuple[nn.Module, str]]]) -> None:
    for (first, own), *others in tied:
        for module, name in others:
            module.register_parameter(name, getattr(first, own))
