"""What autograd saves of DTensors: their parts go the ways of plain tensors (to the host, into codes).

pack      DTensor -> its part -> what the part becomes, with the mesh and the placements
unpack    and back; parameters, and views of them, stay as they are
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class SavedPart(NamedTuple):
    """What autograd holds in the place of a DTensor."""

    packed: Any
    """What its part became."""
    like: tuple[Any, ...]
    """Mesh and placements."""
    shape: torch.Size
    """Of all of it."""
    stride: tuple[int, ...]
    """Of all of it."""


def pack_part(pack: Callable[[Tensor], Any], tensor: Tensor) -> Any:
    """What `pack` makes of a tensor, or of a DTensor's part; itself where `pack` leaves it."""
    if not isinstance(tensor, DTensor):
        return pack(tensor)
    if _is_parameter(tensor) or _is_parameter(tensor._base):
        return tensor
    with torch.no_grad():
        part = tensor.to_local().detach()  # its part may say that it is a leaf
    packed = pack(part)
    return tensor if packed is part else SavedPart(packed, (tensor.device_mesh, tensor.placements), tensor.shape,
                                                   tensor.stride())  # fmt: skip


def unpack_part(unpack: Callable[[Any], Tensor], packed: Any) -> Tensor:
    """The tensor that `pack_part` was given."""
    if not isinstance(packed, SavedPart):
        return packed if isinstance(packed, DTensor) else unpack(packed)
    part = unpack(packed.packed)
    mesh, placements = packed.like
    with torch.no_grad():
        return DTensor.from_local(
            part, mesh, placements, run_check=False, shape=packed.shape, stride=packed.stride
        )  # fmt: skip


def _is_parameter(tensor: Tensor | None) -> bool:
    return tensor is not None and (isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad))
