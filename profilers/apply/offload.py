"""Activation offload done: what blocks save goes to pinned memory as it is made, and comes back a block ahead.

    forward    [0] copies out   [1] copies out   [2] ...      the memory of 0 is given back when 1 is done, and so on
    backward   [2]: fetch 1     [1]: fetch 0     [0]          the last chosen block keeps what it saves: it is next

Each storage is copied once a block, whatever views of it are saved; parameters stay. Copies run on a stream of each
direction. Without a GPU they are plain copies.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.found_blocks import blocks_of


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with what its blocks save on the host, as `plan.offload` says; names and state stay as they are.

    Raises `UnsupportedError` for a model with fewer than two such blocks.
    """
    if plan.offload.activations == "none":
        return model
    every = plan.offload.every if plan.offload.activations == "every" else 1
    chosen = blocks_of(model)[every - 1 :: every]
    if len(chosen) < 2:
        raise UnsupportedError(
            f"offload.activations {plan.offload.activations} finds {len(chosen)} blocks in {type(model).__name__}: it "
            "needs two, of which the last one keeps what it saves",
            hint="--set offload.activations=none",
        )
    travel = _Travel(last=len(chosen) - 1, min_bytes=plan.offload.min_bytes)
    for number, (_, block) in enumerate(chosen):
        block.forward = partial(_run, travel, number, block.forward)
    return model


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Kept:
    """A storage that a block saves."""

    block: int
    device: Tensor | None
    host: Tensor
    place: torch.device
    done: torch.cuda.Event | None = None
    """After the copy that began last."""


class _View(NamedTuple):
    """What autograd holds in the place of a tensor."""

    kept: _Kept
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(slots=True, eq=False)
class _Travel:
    """What is on the way, of all blocks of a model."""

    last: int
    min_bytes: int
    kept: dict[int, list[weakref.ref[_Kept]]] = field(default_factory=dict)
    """By block, in the order of saving."""
    buffers: dict[int, list[Tensor]] = field(default_factory=dict)
    """Pinned memory that is free, by size."""
    streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
    """Out and in."""


def _run(travel: _Travel, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if number == travel.last:
        output = forward(*args, **kwargs)
    else:
        travel.kept[number] = []
        mine: dict[int, weakref.ref[_Kept]] = {}
        with saved_tensors_hooks(partial(_pack, travel, number, mine), partial(_unpack, travel)):
            output = forward(*args, **kwargs)
    for ref in travel.kept.get(number - 1, ()):
        if (kept := ref()) is not None:
            _wait(kept)
            kept.device = None
    return output


def _pack(travel: _Travel, block: int, mine: dict[int, weakref.ref[_Kept]], tensor: Tensor) -> Tensor | _View:
    if isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad) or type(tensor) is not Tensor:
        return tensor
    storage = tensor.untyped_storage()
    if storage.nbytes() < travel.min_bytes or (tensor._base is not None and isinstance(tensor._base, nn.Parameter)):
        return tensor
    ref = mine.get(storage.data_ptr())
    kept = ref() if ref is not None else None
    if kept is None:
        kept = _copy_out(travel, block, storage, tensor.device)
        mine[storage.data_ptr()] = weakref.ref(kept)
        travel.kept[block].append(weakref.ref(kept))
    return _View(kept, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _unpack(travel: _Travel, packed: Tensor | _View) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    kept = packed.kept
    for block in (kept.block, kept.block - 1):
        for ref in travel.kept.get(block, ()):
            if (other := ref()) is not None and other.device is None:
                _copy_in(travel, other)
    _wait(kept)
    device = cast("Tensor", kept.device)
    whole = torch.empty(0, dtype=packed.dtype, device=kept.place)
    return whole.set_(device.untyped_storage(), packed.offset, packed.size, packed.stride)


def _copy_out(travel: _Travel, block: int, storage: torch.UntypedStorage, place: torch.device) -> _Kept:
    whole = torch.empty(0, dtype=torch.uint8, device=place).set_(storage)
    nbytes, pinned = storage.nbytes(), place.type == "cuda"
    free = travel.buffers.setdefault(nbytes, [])
    host = free.pop() if free else torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    kept = _Kept(block=block, device=whole, host=host, place=place)
    weakref.finalize(kept, free.append, host)
    _copy(travel, kept, host, whole, 0)
    return kept


def _copy_in(travel: _Travel, kept: _Kept) -> None:
    kept.device = torch.empty(kept.host.numel(), dtype=torch.uint8, device=kept.place)
    _copy(travel, kept, kept.device, kept.host, 1)


def _copy(travel: _Travel, kept: _Kept, to: Tensor, source: Tensor, way: int) -> None:
    if kept.place.type != "cuda":
        to.copy_(source)
        return
    if travel.streams is None:
        travel.streams = torch.cuda.Stream(kept.place), torch.cuda.Stream(kept.place)
    stream = travel.streams[way]
    stream.wait_stream(torch.cuda.current_stream(kept.place))
    with torch.cuda.stream(stream):
        to.copy_(source, non_blocking=True)
        kept.done = stream.record_event()


def _wait(kept: _Kept) -> None:
    """Let what the model does next come after the copy."""
    if kept.done is not None:
        torch.cuda.current_stream(kept.place).wait_event(kept.done)
        kept.done = None
