"""Carries objects between ranks over gloo where the job's own group is NCCL: a virtual GPU moves no bytes.

torch pickles objects into tensors on the GPU; here each group gets a twin on the CPU, over which they really travel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed
from torch.distributed import distributed_c10d

_CARRIERS = (
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list",
    "recv_object_list",
)  # fmt: skip


def carry_objects() -> None:
    """Put gloo under all collectives of objects; torch is loaded, no group exists yet."""
    twins: dict[int, tuple[Any, Any]] = {}
    for name in _CARRIERS:
        real = getattr(distributed_c10d, name, None)
        if real is not None:
            carried = _over_gloo(real, twins)
            setattr(distributed, name, carried)
            setattr(distributed_c10d, name, carried)


def _over_gloo(real: Callable[..., Any], twins: dict[int, tuple[Any, Any]]) -> Callable[..., Any]:
    signature = inspect.signature(real)

    def carried(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        bound.arguments["group"] = _twin(bound.arguments.get("group"), twins)
        if bound.arguments.get("device") is not None:
            bound.arguments["device"] = torch.device("cpu")
        return real(*bound.args, **bound.kwargs)

    return carried


def _twin(group: Any, twins: dict[int, tuple[Any, Any]]) -> Any:
    """The group's ranks over gloo; made by all of them at the group's first use, kept with the group itself."""
    own = None if group in (None, distributed.group.WORLD) else group
    if distributed.get_backend(own) == "gloo":
        return own
    key = 0 if own is None else id(own)
    if key not in twins:
        ranks = list(range(distributed.get_world_size())) if own is None else distributed.get_process_group_ranks(own)
        twin = distributed.new_group(ranks, backend="gloo", use_local_synchronization=own is not None)
        twins[key] = (twin, own)
    return twins[key][0]
