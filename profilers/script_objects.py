"""Lets objects travel between ranks as torch sends them: pickled, in tensors on the GPU, whatever their size.

The virtual GPU and its NCCL carry small values alone; a thread that sends or receives objects says that all of its are.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from torch import distributed
from torch.distributed import distributed_c10d

_CARRIERS = (
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list",
    "recv_object_list",
)  # fmt: skip


def carry_objects(*names: str) -> None:
    """From now on objects arrive, whatever their size; torch is loaded. Args: `names` of functions; none means all."""
    declare: Callable[[bool], None] | None = getattr(ctypes.CDLL(None), "vg_carry_any_size", None)
    for name in names or _CARRIERS if declare is not None else ():
        real = getattr(distributed_c10d, name, None)
        if real is not None and declare is not None:
            carried = _declared(real, declare)
            setattr(distributed, name, carried)
            setattr(distributed_c10d, name, carried)


def _declared(real: Callable[..., Any], declare: Callable[[bool], None]) -> Callable[..., Any]:
    @functools.wraps(real)
    def carried(*args: Any, **options: Any) -> Any:
        declare(True)  # noqa: FBT003 - C has no keywords
        try:
            return real(*args, **options)
        finally:
            declare(False)  # noqa: FBT003

    return carried
