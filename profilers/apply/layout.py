"""Where a model's tensors lie on a GPU: one after the other, as if it had been made on the host and moved there.

    made on the GPU    w0 .. w1 ..... w2     holes: what `__init__` made and dropped, or wide tensors that were cast
    laid out           w0 w1 w2              and the segments of before given back

Everything goes through one flat copy, for which a model of some size needs as much memory again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LARGE = 2**30
"""Bytes of a copy that may lie on the GPU: no segment of it serves anything else."""
_ALIGNED = 512


def lay_out(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """`model` itself, what is floating cast to `dtype`; without a GPU, `model.to(dtype)`."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}.values()
    device = next((t.device for t in tensors), torch.device("cpu"))
    if device.type != "cuda":
        return model if dtype is None else model.to(dtype)
    count = sum(_room(t, dtype) for t in tensors)
    del tensors  # buffers become other tensors
    room, _ = torch.cuda.mem_get_info(device)
    on_gpu = _LARGE < count < room
    _through(model, torch.empty(count, dtype=torch.uint8, device=device if on_gpu else "cpu"), dtype)
    if on_gpu:  # else what the move itself leaves stays: recurrent layers free their weights for one block of all
        torch.cuda.empty_cache()
    return model


def _through(model: nn.Module, flat: Tensor, dtype: torch.dtype | None) -> None:
    """Move what is on a GPU into `flat`, and then out of it."""
    place, device, used, done = flat.data_ptr(), torch.device("cuda", torch.cuda.current_device()), 0, set[int]()

    def enter(t: Tensor) -> Tensor:
        nonlocal used
        if t.device.type != "cuda" or t.untyped_storage().data_ptr() == place:
            return t
        like = torch.empty_like(t, dtype=_type(t, dtype), device="meta")
        piece = flat[used : used + like.nbytes].view(like.dtype)
        used += _room(t, dtype)
        return piece.as_strided(like.shape, like.stride(), piece.storage_offset()).copy_(t)

    def leave(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() in done:
            return t
        moved = t.to(device, copy=True)
        done.add(moved.untyped_storage().data_ptr())
        return moved

    model._apply(enter)
    torch.cuda.empty_cache()
    model._apply(leave)


def _type(t: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and t.is_floating_point() else t.dtype


def _room(t: Tensor, dtype: torch.dtype | None) -> int:
    return -(-t.numel() * _type(t, dtype).itemsize // _ALIGNED) * _ALIGNED
