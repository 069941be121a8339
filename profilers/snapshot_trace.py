"""A memory snapshot of somebody's program as a `Trace`, so that it is reported, compared and replayed like any other.

    held before the history began   ->  pinned storages
    each run of calls at one place  ->  an op with its events          (modules and lines from the stack frames)
    what a block was for            ->  its kind, from where it was allocated and when it was freed

    allocated in     freed in            kind
    forward          the same forward    TEMP            while a model is built, and never freed: PARAM
    forward          later, or never     ACTIVATION
    backward         the same backward   TEMP
    backward         later, or never     GRAD            as is what autograd's accumulation allocates
    step             the same step       TEMP
    step             later, or never     OPTIMIZER
    before, without frames, freed in step                OPTIMIZER
    before, without frames, as large as a gradient       PARAM once for each gradient, then OPTIMIZER; else UNKNOWN

A trace is one step, of which only the pinned storages survive; a history may hold any part of a program. So what was
held before and freed within is allocated by a first op, and what is left over at the end is freed by a last one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from dnnmem.estimator.build import WORKSPACE
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.timeline import Timeline, timeline
from dnnmem.estimator.trace import Event, Kind, Module, Op, Origin, Phase, Storage, Trace
from dnnmem.estimator.units import format_bytes
from dnnmem.profilers.snapshot import Call, Frames, Snapshot
from dnnmem.profilers.snapshot_places import Place, Places
from dnnmem.profilers.snapshot_start import held_before

BEFORE = "<before the history>"
AFTER = "<after the history>"
_NOWHERE = Place(phase=Phase.FORWARD, module=(), op="", source="", role="unknown")
_SEGMENTS = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
_STATES_A_PARAMETER = 2
"""Optimizer states of a parameter's size that are looked for: Adam's."""


@dataclass(slots=True)
class _Block:
    """One allocation."""

    nbytes: int
    place: Place
    stream: int
    freed: Phase | None = None
    """Phase in which it was freed; None if it is held at the end."""
    before: bool = False
    """Held when the history began."""
    stretch: int = -1
    """In which stretch of one phase it was allocated."""
    within: bool = False
    """Freed in the same stretch."""


@dataclass(slots=True)
class _Run:
    """Consecutive calls at one place."""

    place: Place
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class _Reader:
    """Goes through the history once."""

    blocks: list[_Block] = field(default_factory=list)
    live: dict[int, int] = field(default_factory=dict)
    runs: list[_Run] = field(default_factory=list)
    places: Places = field(default_factory=Places)
    stretch: int = 0
    """How often the phase has changed."""
    reserved_now: int = 0
    reserved_peak: int = 0
    waiting: dict[int, int] = field(default_factory=dict)
    """Bytes that were freed and are still in use, by address."""
    waiting_now: int = 0
    """Their sum."""
    reserved: list[int] = field(default_factory=list)
    """What the segments held at the start, then after each event of a run."""
    late: list[int] = field(default_factory=list)
    """What was freed and still in use at the same moments."""

    def start(self, call: Call, frames: Frames) -> None:
        """A block that was held when the history began."""
        self.live[call.address] = len(self.blocks)
        place = self.places.of(frames) if frames else _NOWHERE
        self.blocks.append(_Block(call.nbytes, place, call.stream, before=True))

    def read(self, call: Call, frames: Frames) -> None:
        """The next call."""
        if call.action in _SEGMENTS:
            self.reserved_now += _SEGMENTS[call.action] * call.nbytes
            self.reserved_peak = max(self.reserved_peak, self.reserved_now)
        elif call.action == "free_completed" and call.address in self.waiting:
            self.waiting_now -= self.waiting.pop(call.address)
        elif call.action == "alloc":
            place = self.places.of(frames)
            self.live[call.address] = len(self.blocks)
            self._run(place).append(Event(call.nbytes, call.stream, len(self.blocks)))
            self.blocks.append(_Block(call.nbytes, place, call.stream, stretch=self.stretch))
            self.note()
        elif call.action in ("free_requested", "free", "free_completed") and call.address in self.live:
            number = self.live.pop(call.address)
            block = self.blocks[number]
            place = self.places.of(frames)
            block.freed = place.phase
            if self.runs and self.runs[-1].place.phase is place.phase:
                place = self.runs[-1].place
            events = self._run(place)
            block.within = block.stretch == self.stretch
            if call.action == "free_requested":
                self.waiting[call.address] = block.nbytes
                self.waiting_now += block.nbytes
            events.append(Event(-block.nbytes, block.stream, number))
            self.note()

    def note(self) -> None:
        """Keep what is reserved, and what is late, now."""
        self.reserved.append(self.reserved_now)
        self.late.append(self.waiting_now)

    def _run(self, place: Place) -> list[Event]:
        if not self.runs or self.runs[-1].place != place:
            self.stretch += not self.runs or self.runs[-1].place.phase is not place.phase
            self.runs.append(_Run(place))
        return self.runs[-1].events


def snapshot_trace(snapshot: Snapshot, name: str) -> tuple[Trace, Measurement, Timeline]:
    """The history of `snapshot`, what its allocator reserved, and both over time; `name` is what people call it."""
    before = _reserved_before(snapshot)
    reader = _Reader(reserved_now=before, reserved_peak=before)
    for call, frames in held_before(snapshot):
        if call.nbytes:
            reader.start(call, frames)
    reader.note()
    for call, frames in zip(snapshot.history, snapshot.frames, strict=True):
        if call.nbytes:
            reader.read(call, frames)
    kinds = _kinds(reader.blocks)
    storages = {i: _storage(i, block, kinds[i]) for i, block in enumerate(reader.blocks)}
    pinned = frozenset(i for i, block in enumerate(reader.blocks) if block.before and block.freed is None)
    ops = [_op(run) for run in reader.runs]
    early = [i for i, block in enumerate(reader.blocks) if block.before and i not in pinned]
    left = [i for i in reader.live.values() if i not in pinned]
    if early:
        events = tuple(Event(storages[i].nbytes, reader.blocks[i].stream, i) for i in early)
        ops.insert(0, Op(name=BEFORE, module=(BEFORE,), phase=ops[0].phase, events=events))
    if left:
        events = tuple(Event(-storages[i].nbytes, reader.blocks[i].stream, i) for i in left)
        ops.append(Op(name=AFTER, module=(AFTER,), phase=ops[-1].phase, events=events))
    trace = Trace(
        ops=tuple(ops),
        storages=storages,
        pinned=pinned,
        modules=tuple(_modules(storages.values())),
        origin=Origin(target=name, device="snapshot", notes=tuple(_notes(storages.values(), snapshot))),
    )
    measured = Measurement(reserved_bytes=reader.reserved_peak)
    return trace, measured, _measured(trace, reader, before=len(early), after=len(left))


def _measured(trace: Trace, reader: _Reader, *, before: int, after: int) -> Timeline:
    """The trace's timeline with the recorded reserved and active bytes, which stand still in the two added ops."""
    curve = timeline(trace)
    reserved, late = (
        np.pad(np.array(values, np.int64), (before, after), mode="edge") for values in (reader.reserved, reader.late)
    )
    return replace(curve, reserved=reserved, active=curve.allocated + late)


def _op(run: _Run) -> Op:
    place = run.place
    return Op(
        name=place.op or place.source or place.phase.value,
        module=place.module,
        phase=place.phase,
        events=tuple(run.events),
        source=place.source,
    )


def _storage(i: int, block: _Block, kind: Kind) -> Storage:
    workspace = block.place.role == "workspace"
    saved = kind is Kind.ACTIVATION
    return Storage(
        id=i,
        nbytes=block.nbytes,
        kind=kind,
        module=block.place.module,
        name=WORKSPACE if workspace else block.place.op,
        saved=saved,
    )


def _kinds(blocks: list[_Block]) -> list[Kind]:
    kinds = [_kind(block) for block in blocks]
    pairs = list(zip(blocks, kinds, strict=True))
    gradients = Counter(block.nbytes for block, kind in pairs if kind is Kind.GRAD and not block.before)
    known = Counter(block.nbytes for block, kind in pairs if kind is Kind.PARAM)
    wanted = {
        Kind.PARAM: {nbytes: count - known[nbytes] for nbytes, count in gradients.items()},
        Kind.OPTIMIZER: {nbytes: count * _STATES_A_PARAMETER for nbytes, count in gradients.items()},
    }
    for i, (block, kind) in enumerate(pairs):
        if kind is Kind.UNKNOWN and block.freed is None:
            for candidate, left in wanted.items():
                if left.get(block.nbytes, 0) > 0:
                    left[block.nbytes] -= 1
                    kinds[i] = candidate
                    break
    return kinds


def _kind(block: _Block) -> Kind:
    place = block.place
    if place.role == "unknown":
        return Kind.OPTIMIZER if block.freed is Phase.STEP else Kind.UNKNOWN
    if place.role == "workspace":
        return Kind.TEMP
    if place.role == "build":
        return Kind.PARAM if block.freed is None else Kind.TEMP
    if place.phase is Phase.STEP:
        return Kind.TEMP if block.within else Kind.OPTIMIZER
    if place.phase is Phase.BACKWARD:
        return Kind.TEMP if block.within and place.role != "accumulate" else Kind.GRAD
    return Kind.TEMP if block.within else Kind.ACTIVATION


def _modules(storages: Iterable[Storage]) -> Iterable[Module]:
    """Each path once, parents first."""
    seen = {s.module[:depth] for s in storages for depth in range(1, len(s.module) + 1)}
    for path in sorted(seen):
        kind = path[-1].partition("@")[0]
        yield Module(path=path, type="" if kind.startswith("<") else kind)


def _reserved_before(snapshot: Snapshot) -> int:
    """What the segments held when the history began."""
    grown = sum(_SEGMENTS.get(call.action, 0) * call.nbytes for call in snapshot.history)
    return sum(segment.nbytes for segment in snapshot.segments) - grown


def _notes(storages: Iterable[Storage], snapshot: Snapshot) -> Iterable[str]:
    yield "Kinds and modules are told from stack frames and from when a block was freed; the file does not hold them."
    if any(s.kind is Kind.UNKNOWN for s in storages):
        yield "What is unknown was allocated before the recording began, and no frames tell what for."
    if snapshot.history and not any(snapshot.frames):
        yield "The file has no stack frames: record them with _record_memory_history(context='all')."
    yield from _limits(snapshot)
    if not snapshot.history:
        yield "The file has no history, only what was held at its end: record one with _record_memory_history()."


def _limits(snapshot: Snapshot) -> Iterable[str]:
    """What of the program the file does not show, or shows beside this GPU's step."""
    refused = [call.nbytes for call in snapshot.history if call.action == "oom"]
    if refused:
        times = "once" if len(refused) == 1 else f"{len(refused)} times"
        yield f"The program ran out of memory {times}, the first time when it asked for {format_bytes(refused[0])}."
    if snapshot.history and _reserved_before(snapshot):
        yield "The history begins when memory was held already; a peak before that is not in the file."
    if snapshot.others:
        others = ", ".join(map(str, snapshot.others))
        yield f"This is GPU {snapshot.device}; the file has GPU {others} too: --index N shows that."
