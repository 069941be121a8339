"""Records what a training step does: each operator, the storages it reads and makes, and when each storage dies.

One recorder for all devices: a dispatch mode over real tensors (cpu, cuda, virtual) or over FakeTensors. It only notes;
`rewrite.py` undoes what a dispatch mode changes (autograd then adds gradients out of place) and `kinds.py` says what
each storage was for. Storages die when their last tensor does, so their finalizers give the allocator's order of frees.

    dispatch(op)  ->  _Entry(op, place, reads, writes, first event)
    finalizer     ->  event (-bytes, storage)         both in one list, in program order
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dnnmem.estimator.trace import Kind, Phase
from dnnmem.profilers.flops import masked_flops, op_cost
from dnnmem.profilers.holds import variables
from dnnmem.profilers.modules import ModuleTracker, Place
from dnnmem.profilers.tensors import is_channels_last, strided_parts, tensors_in
from dnnmem.profilers.unwatched import FILLS, LONG_WAYS, Fill, call_site, fills_in, is_accumulation, is_formula

_ALIASES = frozenset({"aten::detach", "aten::_unsafe_view", "aten::alias", "aten::lift_fresh", "aten::detach_"})
_ADD = torch.ops.aten.add.Tensor
_PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.bmm.default})
_DEVICE = torch.ops.prim.device.default
_PLAIN = frozenset({Tensor, torch.nn.Parameter, FakeTensor})
_NO_DISPATCH = torch._C._disabled_torch_dispatch_impl

_Schema = tuple[bool, tuple[int, ...], tuple[str, ...], Fill | None]
"""Of an operator: is it a view, positions and names of what it writes, and what formulas call when nobody watches."""


@dataclass(slots=True)
class Block:
    """A storage while it is being recorded."""

    nbytes: int
    """Bytes; on a GPU those that were requested."""
    shape: tuple[int, ...]
    """Of the tensor it was first seen through."""
    dtype: str
    """Element type of that tensor."""
    entry: int
    """Index of the op that made it; -1 if it was found."""
    node: int | None = None
    """Sequence number of the autograd node that ran when it was made."""
    died: int = -1
    """Dispatch count at its death; -1 while alive."""
    kind: Kind | None = None
    """What it is for, if it was named."""
    module: tuple[str, ...] | None = None
    """Its owner, or where it was made."""
    name: str = ""
    """Its name within its owner."""
    saved: bool = False
    """True if autograd keeps it for backward."""
    host: bool = False
    """True for what stays on the host on a GPU: not device memory."""
    seen: int = 0
    """Dispatch count at which it was first seen."""
    address: int = 0
    """Where it lies, 0 without a device."""
    channels_last: bool = False
    """True if that tensor's channels lie next to each other."""
    parts: dict[tuple[tuple[str, ...], str], tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the tensors in it that were named, by owner and name."""


@dataclass(slots=True)
class Entry:
    """An operator while it is being recorded."""

    name: str
    """With its overload: `aten.mm.default`."""
    place: Place
    """Where it runs."""
    reads: tuple[int, ...]
    """Storages of its inputs."""
    writes: tuple[int, ...]
    """Storages that it makes or changes."""
    start: int
    """Index of its first event."""
    flops: int
    """Floating-point operations."""
    moved_bytes: int
    """Bytes it must read and write at least once."""
    times: tuple[Any, Any] | None
    """What the clock said before and after it."""
    tick: int
    """Dispatch count."""
    masked_flops: int = 0
    """Of `flops`, those a causal kernel skips."""
    accumulates: tuple[int, int] | None = None
    """(old, new) storages of a sum of gradients that autograd does in place when nobody watches."""


@dataclass(slots=True)
class Log:
    """Everything noted, from the first watched storage on."""

    entries: list[Entry] = field(default_factory=list)
    """In dispatch order."""
    events: list[tuple[int, int]] = field(default_factory=list)
    """(signed bytes, storage) in program order; 0 bytes: what was freed serves again."""
    waiting: list[int] = field(default_factory=list)
    """What is freed and does not serve again yet at the end, in the order of the frees."""
    streams: dict[int, int] = field(default_factory=dict)
    """Streams of the storages, temporaries too, that are not the default one's, by number."""
    blocks: dict[int, Block] = field(default_factory=dict)
    """By the number of the storage."""
    steps: list[tuple[int, int]] = field(default_factory=list)
    """(first entry, first event) of each step."""
    ticks: list[int] = field(default_factory=list)
    """Dispatch count of each step's beginning."""
    held: dict[int, int] = field(default_factory=dict)
    """The last forward entry during which a variable of the program held a storage; in the order of letting go."""
    notes: set[str] = field(default_factory=set)
    """Where the recorded step is known to differ from the bare one."""


class Recorder(TorchDispatchMode):
    """Notes all operators while active. Use `watch` before, `start_step` at each step, and read `log` afterwards."""

    def __init__(
        self,
        tracker: ModuleTracker,
        *,
        device_type: str,
        fake: FakeTensorMode | None = None,
        clock: Callable[[], Any] | None = None,
        label: Callable[[str], None] | None = None,
        inside: Callable[[Log, Entry, Any, Any, Any, Any], None] | None = None,
    ) -> None:
        """Args: `device_type`: whose tensors count; `fake`: those of this mode count, and no others.

        `clock` is read before and after each operator; `label` tells the allocator's history which one runs: its
        dispatch count, and after it `~` and the count. `inside` is told of each noted operator with its arguments and
        outputs, and adds to the log what only its kernel allocates.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = Log()
        self._tracker = tracker
        self._device_type = device_type
        self._fake = fake
        self._clock = clock
        self._label = label
        self._inside = inside
        self._live: dict[int, int] = {}
        self._refs: dict[int, weakref.ref[Any]] = {}
        self._tick = 0
        self._current: tuple[int, Place | None] = (-1, None)
        self._made_by: tuple[object, tuple[int, ...]] = (None, ())
        self._schemas: dict[Any, _Schema] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from wrapping each dispatch (and from importing its compiler for it)."""
        return False

    def start_step(self) -> None:
        """A step begins: what lives now is what it finds."""
        self._current = (-1, None)
        self._tracker.start_step()
        self._tick += 1
        if self._label is not None:
            self._label(f"~{self._tick}")
        self.log.ticks.append(self._tick)
        self.log.steps.append((len(self.log.entries), len(self.log.events)))

    def watch(self, tensor: Tensor, kind: Kind, module: tuple[str, ...], name: str) -> None:
        """Name the storage of `tensor`, noting it if it is new; the first name stays."""
        number = self._see(tensor)
        if number is not None:
            block = self.log.blocks[number]
            if block.kind is None:
                block.kind, block.module, block.name = kind, module, name
            if block.kind is kind:
                block.parts[module, name] = tuple(tensor.shape)

    def find(self, tensor: Tensor) -> None:
        """Note the storage of `tensor` as one that lives between steps, if it is new."""
        self._current = (-1, None)
        self.watch(tensor, Kind.BUFFER, (), "")

    def keep_on_host(self, tensor: Tensor) -> None:
        """The storage of `tensor` would stay in host memory on a GPU: leave it out."""
        number = self._see(tensor)
        if number is not None:
            self.log.blocks[number].host = True

    def note_saved(self, tensor: Tensor) -> None:
        """Autograd keeps `tensor` for backward."""
        number = self._see(tensor)
        if number is not None:
            self.log.blocks[number].saved = True

    def tracks(self, tensor: Tensor) -> bool:
        """True if the memory of `tensor` is what this recorder counts."""
        if isinstance(tensor, FakeTensor):
            return tensor.fake_mode is self._fake and tensor.fake_device.type == self._device_type
        return self._fake is None and tensor.device.type == self._device_type and tensor.layout is torch.strided

    def __torch_dispatch__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and note it; operators over other tensor subclasses are first taken apart by them."""
        kwargs = kwargs or {}
        if func is _DEVICE:
            return func(*args, **kwargs)
        if not all(t in _PLAIN or t.__torch_dispatch__ is _NO_DISPATCH for t in types):
            return NotImplemented
        self._tick += 1
        schema = self._schemas.get(func) or self._read_schema(func)
        if schema[0]:
            return func(*args, **kwargs)
        place = self._tracker.place(func)
        inputs = list(tensors_in(args))
        if kwargs:
            inputs.extend(tensors_in(kwargs.values()))
        self._current = (-1, None)
        reads = self._numbers(inputs)
        if func in LONG_WAYS and place.node is not None:
            self.log.notes.add("the backward pass of prod or cumprod was recorded with more temporaries than it has")
        entry = Entry(str(func), place, reads, (), len(self.log.events), 0, 0, None, self._tick)
        self._current = (len(self.log.entries), place)
        if schema[3] is not None and self._is_fresh(place, args[0]) and fills_in(schema[3]) and is_formula():
            func, more, _ = schema[3]
            args, entry.name, schema = (*args, *more), str(func), self._schemas.get(func) or self._read_schema(func)
        out = self._call(entry, func, args, kwargs)
        self._note(entry, func, args, kwargs, out, schema=schema)
        return out

    def _call(self, entry: Entry, func: Any, args: Any, kwargs: Any) -> Any:
        if self._label is not None:
            self._label(str(self._tick))
        try:
            if self._clock is None:
                return func(*args, **kwargs)
            before = self._clock()
            out = func(*args, **kwargs)
            entry.times = (before, self._clock())
            return out
        finally:
            if self._label is not None:
                self._label(f"~{self._tick}")

    def _note(self, entry: Entry, func: Any, args: Any, kwargs: Any, out: Any, *, schema: _Schema) -> None:
        outputs = self._numbers(tensors_in((out,)))
        known = set(entry.reads)
        changed = [args[i] for i in schema[1] if i < len(args)] + [kwargs[k] for k in schema[2] if k in kwargs]
        new = tuple(n for n in outputs if n not in known)
        if not new and not changed and not entry.reads:
            return
        entry.writes = new + self._numbers(tensors_in(changed)) if changed else new
        entry.flops, entry.moved_bytes = op_cost(func, args, kwargs, out)
        entry.masked_flops = masked_flops(func, args, kwargs, entry.flops)
        if func is _ADD and new and len(args) == 2 and all(isinstance(given, Tensor) for given in args):
            old = self._live.get(args[0].untyped_storage()._cdata)
            if old is not None and self._adds_in_place(entry.place, args, old):
                entry.accumulates = old, new[0]
        self._made_by = (call_site(), entry.writes) if func in _PRODUCTS else (None, ())
        if Phase.FORWARD in {entry.place.phase, self.log.entries[-1].place.phase if self.log.entries else None}:
            self._hold(len(self.log.entries))  # and once more when the pass is over
        self.log.entries.append(entry)
        if self._inside is not None:
            self._inside(self.log, entry, func, args, kwargs, out)

    def _hold(self, index: int) -> None:
        held = self.log.held
        for tensor in variables(sys._getframe(3)):
            if not self.tracks(tensor) or type(tensor) not in _PLAIN:
                continue
            if (number := self._live.get(tensor.untyped_storage()._cdata)) is not None:
                held.pop(number, None)  # the outermost variable lets go last
                held[number] = index

    def _adds_in_place(self, place: Place, args: tuple[Any, ...], old: int) -> bool:
        """True if this sum goes into its first term, `old`, when nobody watches; provided that `old` then dies."""
        if place.node is not None and is_accumulation(args, made_here=self.log.blocks[old].node == place.node):
            return True
        return old in self._made_by[1] and self._made_by[0] == call_site() and not is_formula()

    def _is_fresh(self, place: Place, tensor: Tensor) -> bool:
        """True if the autograd node that runs has made `tensor` itself."""
        number = self._live.get(tensor.untyped_storage()._cdata)
        return place.node is not None and number is not None and self.log.blocks[number].node == place.node

    def _read_schema(self, func: Any) -> _Schema:
        arguments = func._schema.arguments
        mutable = [(i, a) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
        is_view = func.is_view or func._schema.name in _ALIASES
        positions = tuple(i for i, a in mutable if not a.kwarg_only)
        names = tuple(a.name for _, a in mutable)
        result = self._schemas[func] = (is_view and not mutable, positions, names, FILLS.get(func))
        return result

    def _numbers(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        numbers = (self._see(part) for tensor in tensors for part in strided_parts(tensor))
        return tuple(dict.fromkeys(number for number in numbers if number is not None))

    def _see(self, tensor: Tensor) -> int | None:
        """The number of the tensor's storage, noting it if it is new; None if it does not count."""
        if not self.tracks(tensor):
            return None
        storage = tensor.untyped_storage()
        key = storage._cdata
        number = self._live.get(key)
        nbytes = storage.nbytes()
        if number is not None:
            if self.log.blocks[number].nbytes == nbytes:
                return number
            self._dead(number, key)
        if not nbytes:
            return None
        number = len(self.log.blocks)
        index, place = self._current
        dtype = str(tensor.dtype).removeprefix("torch.")
        node, module = (place.node, place.module) if place is not None else (None, None)
        block = Block(nbytes, tuple(tensor.shape), dtype, index, node, module=module, seen=self._tick)
        block.address, block.channels_last = storage.data_ptr() if self._label else 0, is_channels_last(tensor)
        self.log.blocks[number] = block
        self.log.events.append((nbytes, number))
        self._live[key] = number
        self._refs[number] = weakref.ref(storage, partial(self._finalized, number, key))
        return number

    def _finalized(self, number: int, key: int, _: object) -> None:
        if self._live.get(key) == number:
            self._dead(number, key)

    def _dead(self, number: int, key: int) -> None:
        del self._live[key]
        self._refs.pop(number, None)
        block = self.log.blocks[number]
        block.died = self._tick
        self.log.events.append((-block.nbytes, number))
