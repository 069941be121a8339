"""The bytes behind small tensors of a virtual GPU: read into twins on the CPU, and written back from them.

A virtual GPU has memory only behind small copies, so nothing here follows a pointer: all goes through the stub driver.
Whether the bytes of an address mean anything is noted by address: every operator that gives a small tensor out says so.

>>> small(torch.zeros(1024)), small(torch.zeros(1025)), small(torch.zeros(1 << 17, dtype=torch.long))
(True, False, True)
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOST_BYTES = {True: 1 << 12, False: 1 << 20}
"""Largest tensor whose values are kept: floating-point ones, and integers and booleans (ids, masks)."""


def together() -> bool | None:
    """Whether all ranks of the job run; False: one, and those that it receives integers from; None: there is no job."""
    nccl: Any = ctypes.CDLL(None)
    if not hasattr(nccl, "payload_rank") or nccl.payload_rank() < 0:
        return None
    return bool(nccl.payload_together())


def small(tensor: Tensor) -> bool:
    """Whether the values of `tensor` are kept."""
    if tensor.layout is not torch.strided:
        return False
    return span(tensor) <= MOST_BYTES[tensor.dtype.is_floating_point or tensor.dtype.is_complex]


def span(tensor: Tensor) -> int:
    """Bytes from its first element to its last."""
    if not tensor.numel():
        return 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


class Twins:
    """Moves values between small tensors on virtual GPUs and the CPU."""

    def __init__(self) -> None:
        """Find the stub driver in this process."""
        driver = ctypes.CDLL(None)
        self._copy, self._fill = driver.vg_copy, driver.vg_fill
        self._copy.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t]
        self._fill.argtypes = [ctypes.c_size_t, ctypes.c_uint, ctypes.c_size_t, ctypes.c_size_t]
        self._copy.restype = self._fill.restype = None
        self._known: dict[int, bool] = {}
        self.together = together()
        """Whether all ranks of the job run, so that what they send arrives; None: there is no job."""

    def known(self, tensors: Iterable[Tensor]) -> bool:
        """Whether the values of all of them are true."""
        return all(not t.numel() or (small(t) and self._is_known(t)) for t in tensors)

    def _is_known(self, tensor: Tensor) -> bool:
        """What was said of its address, or else of the storage that it is a view of."""
        start = tensor.data_ptr()
        known = self._known.get(start)
        return self._known.get(tensor.untyped_storage().data_ptr(), False) if known is None else known

    def mark(self, tensor: Tensor, *, known: bool) -> None:
        """Say whether the values of a small tensor are true from now on."""
        self._known[tensor.data_ptr()] = known

    def read(self, tensor: Tensor) -> Tensor:
        """A tensor on the CPU with the same values, shape and strides."""
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if twin.numel():
            self._copy(twin.data_ptr(), tensor.data_ptr(), span(tensor))
        return twin

    def write(self, tensor: Tensor, twin: Tensor) -> None:
        """Give `tensor` the values of `twin`, which may have other strides."""
        if not tensor.numel():
            return
        own = twin.detach()
        if own.stride() != tensor.stride() or own.dtype != tensor.dtype:
            own = self.read(tensor).copy_(own)
        self._copy(tensor.data_ptr(), own.data_ptr(), span(tensor))
        self.mark(tensor, known=True)

    def assume(self, tensor: Tensor, *, ones: bool = False) -> None:
        """Give a small tensor zeros, or ones, that nobody has computed."""
        if not tensor.numel():
            return
        if ones:
            self.write(tensor, torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu"))
        else:
            self._fill(tensor.data_ptr(), 0, 1, span(tensor))
        self.mark(tensor, known=False)
