"""Storages that autograd saved, on their way to the host and back: what `offload` and `offload_conv` have in common.

Each storage is copied once, whatever views of it are saved. Copies run on a stream of each direction; pinned memory is
used again. Without a GPU they are plain copies. With `files` what came to the host goes on into a file.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.offload_files import File, Files


@dataclass(slots=True, eq=False, weakref_slot=True)
class Kept:
    """A storage that was saved."""

    device: Tensor | None
    """None while it is on the host alone."""
    host: Tensor | File | None
    """None until it is sent."""
    place: torch.device
    """Where `device` is."""
    unit: list[weakref.ref[Kept]]
    """What comes back together with it, itself among them."""
    done: torch.cuda.Event | None = None
    """After the copy that began last."""
    reading: Future[None] | None = None
    """Of its file, with the copy that follows."""


_IN = 1
"""Number of the stream in."""


class View(NamedTuple):
    """What autograd holds in the place of a tensor."""

    kept: Kept
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(slots=True, eq=False)
class Copies:
    """Of one model."""

    buffers: dict[int, list[Tensor]] = field(default_factory=dict)
    """Pinned memory that is free, by size."""
    streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
    """Out and in."""
    files: Files | None = None
    """Where what was sent goes on to."""

    def send(self, kept: Kept) -> None:
        """Copy a storage out; it stays until `let_go`."""
        whole = cast("Tensor", kept.device)
        host, give_back = self._buffer(kept.place, whole.numel())
        kept.host = host
        self._copy(kept, host, whole, 1 - _IN)
        if self.files is None:
            weakref.finalize(kept, give_back)
        else:
            ready = kept.done.synchronize if kept.done is not None else lambda: None
            kept.host = self.files.write(host, kept, ready=ready, done=give_back)

    def fetch(self, unit: Iterable[weakref.ref[Kept]]) -> None:
        """Let what is on the host alone come back."""
        for ref in unit:
            kept = ref()
            if kept is None or kept.device is not None or kept.host is None:
                continue
            host = kept.host
            nbytes = host.nbytes if isinstance(host, File) else host.numel()
            kept.device = torch.empty(nbytes, dtype=torch.uint8, device=kept.place)
            if isinstance(host, File):
                self._read(kept, host)
            else:
                self._copy(kept, kept.device, host, _IN)

    def _buffer(self, place: torch.device, nbytes: int) -> tuple[Tensor, Callable[[], None]]:
        """Memory of the host, pinned beside a GPU, and what gives it back."""
        free = self.buffers.setdefault(nbytes, [])
        pinned = place.type == "cuda"
        host = free.pop() if free else torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        return host, partial(free.append, host)

    def _read(self, kept: Kept, file: File) -> None:
        """Read a file and copy it in, both by another thread, which holds nothing of the GPU's when it is done."""
        host, give_back = self._buffer(kept.place, file.nbytes)
        ref, cuda = weakref.ref(kept), kept.place.type == "cuda"
        ready = torch.cuda.current_stream(kept.place).record_event() if cuda else None

        def copy_in() -> None:
            kept = ref()
            if kept is not None and kept.device is not None:
                self._copy(kept, kept.device, host, _IN, after=ready)
                if kept.done is not None:
                    kept.done.synchronize()
            give_back()

        kept.reading = cast("Files", self.files).read(file, host, copy_in)

    def unpack(self, packed: Tensor | View) -> Tensor:
        """The tensor that autograd saved."""
        if isinstance(packed, Tensor):
            return packed
        kept = packed.kept
        if kept.device is None:
            self.fetch(kept.unit)
        wait(kept)
        whole = torch.empty(0, dtype=packed.dtype, device=kept.place)
        storage = cast("Tensor", kept.device).untyped_storage()
        return whole.set_(storage, packed.offset, packed.size, packed.stride)

    def _copy(self, kept: Kept, to: Tensor, source: Tensor, way: int, *, after: torch.cuda.Event | None = None) -> None:
        """Copy on the stream of that way when the model, or what `after` stands for, has come so far."""
        if kept.place.type != "cuda":
            to.copy_(source)
            return
        if self.streams is None:
            self.streams = torch.cuda.Stream(kept.place), torch.cuda.Stream(kept.place)
        stream = self.streams[way]
        stream.wait_event(after or torch.cuda.current_stream(kept.place).record_event())
        with torch.cuda.stream(stream):
            to.copy_(source, non_blocking=True)
            kept.done = stream.record_event()


def copies_of(plan: Plan) -> Copies:
    """Those of a model under `plan`."""
    return Copies(files=Files() if plan.offload.files else None)


def keep(tensor: Tensor, unit: list[weakref.ref[Kept]]) -> Kept:
    """The storage of `tensor`, which enters `unit`."""
    storage = tensor.untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
    kept = Kept(device=whole, host=None, place=tensor.device, unit=unit)
    unit.append(weakref.ref(kept))
    return kept


def view(kept: Kept, tensor: Tensor) -> View:
    """What stands for `tensor`."""
    return View(kept, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def is_movable(tensor: Tensor, min_bytes: int) -> bool:
    """True for what is large enough, and no parameter or a view of one."""
    if isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad) or type(tensor) is not Tensor:
        return False
    if tensor._base is not None and isinstance(tensor._base, nn.Parameter):
        return False
    return tensor.untyped_storage().nbytes() >= min_bytes


def let_go(unit: Iterable[weakref.ref[Kept]]) -> None:
    """Give back the memory of what was sent."""
    for ref in unit:
        if (kept := ref()) is not None and kept.host is not None:
            wait(kept)
            kept.device = None


def wait(kept: Kept) -> None:
    """Let what the model does next come after the copy."""
    if kept.reading is not None:
        kept.reading.result()
        kept.reading = None
    if kept.done is not None:
        torch.cuda.current_stream(kept.place).wait_event(kept.done)
        kept.done = None


def before_backward(output: Any, begin: Callable[[], None]) -> None:
    """Call `begin` when the backward pass reaches one of `output`'s tensors; for each of them."""
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            leaf.register_hook(lambda _: begin())
