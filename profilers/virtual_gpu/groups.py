"""Tells the stub of NCCL what only torch knows of a group, where its other ranks do not run.

`ncclCommSplit` gets a color and no size: how many ranks share the color is known to the other ranks, which may not
exist. torch's callers know it. Where torch makes the color in Python, the size goes with the color; `split_group`
makes it in C++, so there the size is told just before the call.

A rank that sends or receives names the other one by its number in the group; the job's number of it is told before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.distributed.distributed_c10d as c10d

_NEXT = -1
"""In place of a color: the group that this thread splits off next."""


def tell_split_sizes() -> None:
    """From now on, each group that torch splits off has its size in the stub library; call it before any is made."""
    tell: Callable[[int, int], None] | None = getattr(ctypes.CDLL(None), "dnnmem_split_size", None)
    if tell is None:
        return
    if hasattr(c10d, "_process_group_color"):
        c10d._process_group_color = _telling_color(c10d._process_group_color, tell)
    if hasattr(c10d, "split_group"):
        c10d.split_group = torch.distributed.split_group = _telling_split(c10d.split_group, tell)


def tell_peers() -> None:
    """From now on, the stub library knows from which rank of the job a tensor comes, or to which one it goes."""
    tell: Callable[[int], None] | None = getattr(ctypes.CDLL(None), "dnnmem_next_peer", None)
    if tell is None:
        return
    for name in ("send", "recv"):
        setattr(c10d.ProcessGroup, name, _telling_peer(getattr(c10d.ProcessGroup, name), tell))


def _telling_peer(move: Callable[..., Any], tell: Callable[[int], None]) -> Callable[..., Any]:
    def told(group: Any, tensors: list[torch.Tensor], peer: int, *args: Any, **options: Any) -> Any:
        if tensors[0].is_cuda and group in c10d._world.pg_group_ranks:
            tell(torch.distributed.get_global_rank(group, peer))
        return move(group, tensors, peer, *args, **options)

    return told


def _telling_color(color_of: Callable[[list[int]], int], tell: Callable[[int, int], None]) -> Callable[..., int]:
    def told(ranks: list[int]) -> int:
        color = color_of(ranks)
        tell(color, len(ranks))
        return color

    return told


def _telling_split(split: Callable[..., Any], tell: Callable[[int, int], None]) -> Callable[..., Any]:
    def told(parent_pg: Any = None, split_ranks: list[list[int]] | None = None, *args: Any, **options: Any) -> Any:
        own = torch.distributed.get_rank(parent_pg)
        size = next((len(ranks) for ranks in split_ranks or () if own in ranks), 0)
        tell(_NEXT, size)
        return split(parent_pg, split_ranks, *args, **options)

    return told
