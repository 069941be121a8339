"""The mesh of a plan's ranks in the process group: one for all applies, since FSDP2 and DTensor must share it.

    pp x dp_replicate x dp_shard x cp x tp     the last counts up first: a tp group is ranks side by side

Ranks of one tp group hold parts of the same matrices and read the same samples. Degrees of 1 have no dimension, but for
the two of data parallelism.
"""

from __future__ import annotations

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Plan

NAMES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Dimensions, outermost first."""
_ALWAYS = ("dp_replicate", "dp_shard")
_known: dict[tuple[int, ...], tuple[object, DeviceMesh]] = {}


def device_type() -> str:
    """What the process group sends from."""
    return "cuda" if "nccl" in distributed.get_backend() else "cpu"


def device_mesh(plan: Plan) -> DeviceMesh:
    """The mesh over all ranks, the same object for the same degrees. Raises `UsageError` as `check_ranks`."""
    check_ranks(plan)
    degrees = {name: getattr(plan.mesh, name) for name in NAMES}
    sizes = tuple(degrees.values())
    group = distributed.group.WORLD
    if sizes not in _known or _known[sizes][0] is not group:
        there = {name: size for name, size in degrees.items() if size > 1 or name in _ALWAYS}
        mesh = init_device_mesh(device_type(), tuple(there.values()), mesh_dim_names=tuple(there))
        _known[sizes] = (group, mesh)
    return _known[sizes][1]


def check_ranks(plan: Plan) -> None:
    """Raise `UsageError` without a process group of the plan's size."""
    ranks = distributed.get_world_size() if distributed.is_initialized() else 0
    if ranks != plan.mesh.world_size:
        have = f"the process group has {ranks}" if ranks else "there is no process group"
        raise UsageError(
            f"the plan is for {plan.mesh.world_size} ranks, but {have}",
            hint=f"torchrun --nproc-per-node {plan.mesh.world_size}, and init_process_group() before this",
        )
