"""One training step as data: operators in order, the storages they touch, and the allocator's list of events.

A `Trace` is the only intermediate representation of dnnmem, at any granularity: an `Op` may be `aten.mm` or a whole
block. Every technique is inserted ops, changed storages or moved frees; `check` states what stays true of all of them.

    setup (process start .. step)      op 0             op 1                 op n-1
    +a p0  +a p1  +a exp_avg0 ...  |  +a x  +a tmp -tmp  |  +a y  -x   | ... |  -y        in the allocator's order
                                      `-- op 0 owns these: its allocations and what is freed before op 1 begins

The list is ordered because reserved memory depends on the order (RECORDING: a replay of it is exact). A storage that
lives when the step starts is *pinned*; the step leaves exactly the pinned storages alive, so that the next step can
follow. A pinned storage may be freed and allocated again within the step (a gradient under `zero_grad` at the top
of the loop).

>>> w = Storage(id=0, nbytes=8, kind=Kind.PARAM, shape=(2,), dtype="float32", module=("fc",), name="weight")
>>> y = Storage(id=1, nbytes=4, kind=Kind.TEMP, shape=(1,), dtype="float32")
>>> op = Op(name="aten.sum", reads=(0,), writes=(1,), events=(Event(4, 0, 1), Event(-4, 0, 1)))
>>> trace = Trace(ops=(op,), storages={0: w, 1: y}, setup=(Event(8, 0, 0),), pinned=frozenset({0}))
>>> trace.check()
>>> op.frees, trace.peak_bytes()
((1,), 12)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain
from typing import NamedTuple

from dnnmem.estimator.errors import TraceError


class Kind(str, Enum):
    """What a storage is for."""

    PARAM = "param"
    GRAD = "grad"
    OPTIMIZER = "optimizer"
    ACTIVATION = "activation"
    TEMP = "temp"
    INPUT = "input"
    BUFFER = "buffer"
    COMM = "comm"
    UNKNOWN = "unknown"


class Phase(str, Enum):
    """Where in the step an op runs. Recomputation inside backward is BACKWARD."""

    FORWARD = "forward"
    BACKWARD = "backward"
    STEP = "step"


class Lane(str, Enum):
    """Which engine runs an op; lanes overlap, ops of one lane do not."""

    COMPUTE = "compute"
    COMM = "comm"
    TO_HOST = "to_host"
    TO_DEVICE = "to_device"


class Event(NamedTuple):
    """One call of the allocator."""

    nbytes: int
    """Requested bytes: positive for an allocation, negative for a free, 0 for the end of a wait.

    What another stream uses when it is freed waits: its memory serves again only from an event of 0 bytes on, which may
    come in the next step. If several blocks of one storage wait, the oldest one's wait ends.
    """
    stream: int
    """Stream the block belongs to; 0 is the default stream."""
    storage: int
    """Storage id; a negative id is a temporary inside the op, which no other op ever sees."""


class Part(NamedTuple):
    """One of several tensors that lie in one storage."""

    module: tuple[str, ...]
    """Path of the module that owns it."""
    name: str
    """Name within its owner."""
    shape: tuple[int, ...]
    """Its own shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A block of device memory behind one or more tensors."""

    id: int
    """Unique in its trace, not negative."""
    nbytes: int
    """Bytes requested for it."""
    kind: Kind
    """What it is for."""
    shape: tuple[int, ...] = ()
    """Shape of the tensor it was made for."""
    dtype: str = ""
    """Element type of that tensor, as torch names it without the prefix: `float32`."""
    module: tuple[str, ...] = ()
    """Path of the module that owns it (parameters and their gradients and optimizer states) or that made it."""
    name: str = ""
    """Name within its owner: `weight`, `weight.exp_avg`; empty for what ops make."""
    channels_last: bool = False
    """True if that tensor is an image whose channels lie next to each other in memory (NHWC)."""
    saved: bool = False
    """True if autograd keeps it from the forward pass for the backward pass."""
    parts: tuple[Part, ...] = ()
    """Parameters, or gradients, that lie in it, where these are several: weights of cuDNN's recurrent layers do."""

    @property
    def tensors(self) -> tuple[Part, ...]:
        """Its parts, or the one tensor that it is."""
        return self.parts or (Part(self.module, self.name, self.shape),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator, or one block of them."""

    name: str
    """Operator name with its overload: `aten.mm.default`."""
    module: tuple[str, ...] = ()
    """Path of the module it runs in; `("<loss>",)` outside of all modules, `("<optimizer>",)` in the update."""
    phase: Phase = Phase.FORWARD
    """Forward, backward or step."""
    lane: Lane = Lane.COMPUTE
    """Engine that runs it."""
    reads: tuple[int, ...] = ()
    """Storages it reads."""
    writes: tuple[int, ...] = ()
    """Storages it writes, new ones and those changed in place."""
    events: tuple[Event, ...] = ()
    """Allocator events from its start until the next op begins, in order."""
    releases: tuple[int, ...] = ()
    """Saved storages, used no more in the forward pass, that the program's variables hold until here; in the order in
    which they let go."""
    flops: int = 0
    """Floating-point operations of matrix products, convolutions and attention (a multiply-add is two); else 0."""
    masked_flops: int = 0
    """Of `flops`, those of scores above the diagonal: a causal kernel skips them."""
    moved_bytes: int = 0
    """Bytes it must read and write at least once."""
    workspace_bytes: int = 0
    """Library workspace it needs (cuBLAS, cuDNN), kept or temporary."""
    seconds: float | None = None
    """Measured seconds, or None."""
    source: str = ""
    """Line of the user's program that caused it, `file:line`; for backward, the forward line."""

    @property
    def frees(self) -> tuple[int, ...]:
        """Storages freed by this op or before the next one, temporaries left out."""
        return tuple(e.storage for e in self.events if e.nbytes < 0 and e.storage >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module of the model, for reports."""

    path: tuple[str, ...]
    """Path from the root; `()` is the model itself."""
    type: str
    """Class name."""
    source: str = ""
    """Where its class is defined, `file:line`."""
    called: bool = True
    """False where what is inside it was called without it: a ModuleList, a block of which `block.attention(x)` or a
    method is called. What is to be done around its call is never done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a trace comes from."""

    target: str = ""
    """What the user named."""
    device: str = ""
    """`cpu`, `fake`, `virtual` or `cuda`."""
    gpu: str | None = None
    """Name in `specs/` of the GPU that was used, or whose kernels were assumed."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """`dnnmem`, `torch`, `python` and what else decides the step."""
    notes: tuple[str, ...] = ()
    """What was assumed or extrapolated, in sentences for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One training step on one device. Raises nothing on creation: call `check`."""

    ops: tuple[Op, ...]
    """In issue order."""
    storages: Mapping[int, Storage]
    """All storages by id."""
    setup: tuple[Event, ...] = ()
    """Events from process start to the step; replaying them and the ops' events gives reserved memory."""
    pinned: frozenset[int] = frozenset()
    """Storages alive before the step, and after it."""
    modules: tuple[Module, ...] = ()
    """The model's modules in definition order."""
    batch: Mapping[str, int | str] = field(default_factory=dict)
    """`batch_size`, `seq_len` and the arguments the batch was made with."""
    origin: Origin = field(default_factory=Origin)
    """Where it comes from."""

    def events(self) -> Iterator[tuple[int, Event]]:
        """All events of the step in order, each with the index of its op (`setup` left out)."""
        for index, op in enumerate(self.ops):
            for event in op.events:
                yield index, event

    def without_waits(self) -> Trace:
        """The same with frees that are complete at once, for whoever moves events about."""
        if all(event.nbytes for event in chain(self.setup, *(op.events for op in self.ops))):
            return self
        ops = tuple(replace(op, events=tuple(e for e in op.events if e.nbytes)) for op in self.ops)
        return replace(self, ops=ops, setup=tuple(e for e in self.setup if e.nbytes))

    def pinned_bytes(self) -> int:
        """Bytes alive before and after the step."""
        return sum(self.storages[i].nbytes for i in self.pinned)

    def peak_bytes(self) -> int:
        """Largest sum of requested bytes alive at any moment of the step."""
        live = peak = self.pinned_bytes()
        for op in self.ops:
            for event in op.events:
                live += event.nbytes
                peak = max(peak, live)
        return peak

    def check(self) -> None:
        """Raise `TraceError` unless reads are live, blocks are freed once, sizes agree and only the pinned survive.

        A storage of 0 bytes has no block: it has no events and may be read at any time. A temporary dies with its op.
        """
        unknown = self.pinned - self.storages.keys()
        if unknown:
            raise TraceError(f"pinned storages {sorted(unknown)[:8]} are not among the {len(self.storages)} storages")
        for i, storage in self.storages.items():
            if i != storage.id or i < 0 or storage.nbytes < 0:
                raise TraceError(
                    f"storage {i} has id {storage.id} and {storage.nbytes} bytes; ids agree, and neither is negative"
                )
        live = {i: self.storages[i].nbytes for i in self.pinned}
        for index, op in enumerate(self.ops):
            _check_op(index, op, live, self.storages)
        left = live.keys() - self.pinned
        gone = self.pinned - live.keys()
        if left or gone:
            raise TraceError(
                f"after the last op, storages {sorted(left)[:8]} live and pinned storages {sorted(gone)[:8]} do not; "
                "a step leaves exactly its pinned storages alive"
            )


def _check_op(index: int, op: Op, live: dict[int, int], storages: Mapping[int, Storage]) -> None:
    where = f"op {index} ({op.name})"
    for i in op.reads:
        if i not in live and not _is_empty(i, storages):
            raise TraceError(f"{where} reads storage {i}, which is not alive")
    for event in op.events:
        _check_event(where, event, live, storages)
    kept = sum(event.nbytes for event in op.events if event.storage < 0)
    if kept:
        raise TraceError(f"{where} leaves {kept} bytes of its temporaries alive; they die before the next op begins")
    missing = [i for i in op.writes if i not in live and i not in op.frees and not _is_empty(i, storages)]
    if missing:
        raise TraceError(f"{where} writes storages {missing}, which are not alive")


def _check_event(where: str, event: Event, live: dict[int, int], storages: Mapping[int, Storage]) -> None:
    i, nbytes = event.storage, event.nbytes
    if nbytes > 0:
        if i in live:
            raise TraceError(f"{where} allocates storage {i}, which is already alive")
        if i >= 0 and (i not in storages or storages[i].nbytes != nbytes):
            raise TraceError(f"{where} allocates {nbytes} bytes for storage {i}, which the trace does not list so")
        live[i] = nbytes
    elif nbytes == 0:
        if i not in storages:
            raise TraceError(f"{where} ends a wait for storage {i}, which the trace does not list")
    elif live.pop(i, None) != -nbytes:
        raise TraceError(f"{where} frees {-nbytes} bytes of storage {i}, which is not alive with that size")


def _is_empty(i: int, storages: Mapping[int, Storage]) -> bool:
    return i in storages and storages[i].nbytes == 0
