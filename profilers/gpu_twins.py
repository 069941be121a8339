"""The bytes behind small tensors of a virtual GPU: read into twins on the CPU, and written back from them.

A virtual GPU has memory only behind what somebody has put there, so nothing here follows a pointer: all goes through
the stub driver. What the bytes are worth is noted by storage, piece by piece, as long as the storage lives:

    unknown    nobody has computed them; they read as 0
    assumed    they stand on an assumption that is reported
    true       a real GPU has the same

>>> small(torch.zeros(1024)), small(torch.zeros(1025)), small(torch.zeros(1 << 17, dtype=torch.long))
(True, False, True)
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dnnmem.profilers.tensors import strided_parts

UNKNOWN, ASSUMED, TRUE = 0, 1, 2
"""What a value is worth; of several, the least counts."""
MOST_BYTES = {True: 1 << 12, False: 1 << 24}
"""Largest tensor whose values are kept: floating-point ones, and integers and booleans (ids, masks, routes)."""
MOST_DERIVED_BYTES = 1 << 22
"""Largest floating-point tensor, if it was made from known ones that are no smaller than `MOST_BYTES` (masks)."""
MOST_COPY_BYTES = 1 << 20
"""Largest copy or memset of a program's own that has values."""


def together() -> bool | None:
    """Whether all ranks of the job run; False: one, and those that it receives integers from; None: there is no job."""
    nccl: Any = ctypes.CDLL(None)
    if not hasattr(nccl, "payload_rank") or nccl.payload_rank() < 0:
        return None
    return bool(nccl.payload_together())


def small(tensor: Tensor, *, derived: bool = False) -> bool:
    """Whether the values of `tensor` are kept; `derived` from others that are."""
    if tensor.layout is not torch.strided:
        return False
    floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    most = MOST_DERIVED_BYTES if floating and derived else MOST_BYTES[floating]
    return tensor.numel() * tensor.element_size() <= most and span(tensor) <= most


def span(tensor: Tensor) -> int:
    """Bytes from its first element to its last."""
    if not tensor.numel():
        return 0
    if tensor.is_contiguous():
        return tensor.numel() * tensor.element_size()
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


@dataclass(slots=True)
class _Record:
    """What is known of a storage."""

    address: int
    """Where it begins."""
    storage: StorageWeakRef
    """It; not by its Python object, which would be an owner, and which torch 2.7 lets nobody look at from outside."""
    pieces: list[tuple[int, int, int]] = field(default_factory=list)
    """First byte, end and worth of pieces that have values; in order, apart."""
    share: float | None = None
    """Part of the elements that are taken not to be 0, where they are too many to be kept."""
    assumption: str = ""
    """What these values stand on, in a sentence, until somebody reads them."""


class Twins:
    """Moves values between small tensors on virtual GPUs and the CPU."""

    def __init__(self) -> None:
        """Values outlive kernels from now on: there is a stub driver in this process."""
        driver = ctypes.CDLL(None)
        self._move, self._drop, self._expect = driver.vg_move, driver.vg_drop_values, driver.vg_expect
        self._move.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t]
        self._drop.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        self._expect.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self._move.restype = self._drop.restype = self._expect.restype = None
        driver.vg_keep_values.argtypes = [ctypes.c_size_t]
        driver.vg_keep_values(MOST_COPY_BYTES)
        self._records: dict[int, _Record] = {}
        self.together = together()
        """Whether all ranks of the job run, so that what they send arrives; None: there is no job."""

    def worth(self, tensors: Iterable[Tensor]) -> int:
        """What the values of all of them are worth."""
        worst = TRUE
        for tensor in tensors:
            worst = min(worst, self._worth_of(tensor))
            if not worst:
                break
        return worst

    def share(self, tensor: Tensor) -> float | None:
        """Part of the elements that are taken not to be 0; None where nothing is assumed of that."""
        record = self._find(tensor)
        return record.share if record is not None else None

    def set_share(self, tensor: Tensor, share: float) -> None:
        """Assume that `share` of the elements of a new tensor are not 0."""
        self._make(tensor).share = share

    def assume(self, tensor: Tensor, values: Tensor, assumption: str) -> None:
        """Give `tensor` values that stand on an assumption."""
        self.write(tensor, values, ASSUMED)
        if (record := self._find(tensor)) is not None:
            record.assumption = assumption

    def assumption(self, tensor: Tensor) -> str:
        """What the values of `tensor` stand on, for the first who asks; empty if they were made of others."""
        record = self._find(tensor)
        if record is None:
            return ""
        told, record.assumption = record.assumption, ""
        return told

    def mark(self, tensor: Tensor, worth: int) -> None:
        """Say what the values of a tensor are worth from now on."""
        record = self._find(tensor) if tensor.numel() else None
        if not tensor.numel() or (record is None and not worth):
            return
        record = record or self._make(tensor)
        start = tensor.data_ptr() - record.address
        end = start + span(tensor)
        if end - start > tensor.numel() * tensor.element_size():  # others lie between its elements
            worth = min(worth, self._worth_of(tensor))
        pieces = []
        for low, high, old in record.pieces:
            if low < start:
                pieces.append((low, min(high, start), old))
            if high > end:
                pieces.append((max(low, end), high, old))
        if worth:
            pieces.append((start, end, worth))
        record.pieces = sorted(pieces)

    def read(self, tensor: Tensor) -> Tensor:
        """A tensor on the CPU with the same values, shape and strides."""
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if twin.numel():
            self._move(twin.data_ptr(), tensor.data_ptr(), span(tensor))
        return twin

    def write(self, tensor: Tensor, twin: Tensor, worth: int) -> None:
        """Give `tensor` the values of `twin`, which may have other strides."""
        if not tensor.numel():
            return
        own = twin.detach()
        if own.stride() != tensor.stride() or own.dtype != tensor.dtype or own.shape != tensor.shape:
            own = self.read(tensor).copy_(own)
        self._move(tensor.data_ptr(), own.data_ptr(), span(tensor))
        self.mark(tensor, worth)

    def forget(self, tensor: Tensor) -> None:
        """Nobody knows the values of `tensor` any more: they read as 0."""
        for part in strided_parts(tensor):
            if part.numel():
                self._drop(part.data_ptr(), span(part))
                self.mark(part, UNKNOWN)

    def expect(self, counts: Sequence[int] | None) -> None:
        """What the host code of the next operator reads: truths are 1, numbers those of `counts`, then 0.

        None: what is really there.
        """
        if counts is None:
            self._expect(None, -1)
        else:
            self._expect((ctypes.c_int64 * len(counts))(*counts), len(counts))

    def _worth_of(self, tensor: Tensor) -> int:
        if not tensor.numel():
            return TRUE
        record = self._find(tensor)
        if record is None:
            return UNKNOWN
        start = tensor.data_ptr() - record.address
        end = start + span(tensor)
        worst = TRUE
        for low, high, worth in record.pieces:
            if high <= start:
                continue
            if low > start:
                return UNKNOWN
            worst = min(worst, worth)
            if high >= end:
                return worst
            start = high
        return UNKNOWN

    def _find(self, tensor: Tensor) -> _Record | None:
        """Found by address: a Python object of the storage would be an owner, and autograd adds in place to none's.

        Another storage at that address has none of what was known of the one before.
        """
        if tensor.layout is not torch.strided:
            return None
        address = tensor.data_ptr() - int(tensor.storage_offset()) * tensor.element_size()
        record = self._records.get(address)
        if record is None or record.storage.cdata == torch._C._storage_id(tensor):  # type: ignore[attr-defined]
            return record
        del self._records[address]
        return None

    def _make(self, tensor: Tensor) -> _Record:
        storage = tensor.untyped_storage()
        record = self._records[storage.data_ptr()] = _Record(storage.data_ptr(), StorageWeakRef(storage))
        return record
