"""The step of a pipeline's rank, micro-batch by micro-batch in the order of its schedule: made to be played.

    F0 F1 B0 F2 B1 B2 | update        each micro-batch has storages of its own, parameters and states are there once

A gradient is made by a step's first backward pass, added to by the others, and goes with the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dnnmem.estimator.first_step import is_of_first_step
from dnnmem.estimator.passes.backward_parts import backward_parts, held_apart
from dnnmem.estimator.passes.pipeline_buffers import RECEIVE, SEND, received, staying
from dnnmem.estimator.pipeline_timing import in_flight
from dnnmem.estimator.schedules.grid import Step
from dnnmem.estimator.send_waits import kernels_of, with_waits
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

_OF_A_CHUNK = frozenset({Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER, Kind.COMM})
"""Kinds that each chunk has for itself, even where chunks of a rank are one trace."""
_ADD = "aten.add_.Tensor"


def rank_step(
    chunks: Sequence[Trace], steps: Sequence[Step], copies: int = 0, places: int = 1, *, folded: bool = False
) -> Trace:
    """The step of a rank that holds `chunks`: an op for each of the schedule's `steps`, then the update.

    Its ops carry events and flops: it is made to be played, not to be timed. `copies` of the weights rest beside them,
    and each message has `places`, where it has its own. `folded`: the second chunk follows the first one in the model,
    and is handed its outputs as they are.
    """
    apart = {step.chunk for step in steps if step.phase == "I"}
    chunks = [held_apart(chunk) if c in apart else chunk for c, chunk in enumerate(chunks)]
    writer = _Writer(chunks, copies, places, folded=folded)
    ops = [op for step in steps for op in writer.ops(step)]
    late = _held_by_its_send(chunks, steps, places)
    if late is not None:
        ops = _lingering(ops, writer.own.get((0, late[0]), {}), *late[1:])
    update = [*writer.update()]
    kernels = [*writer.kernels, *map(kernels_of, update)]
    sent = writer.on_wire if any(map(received, chunks)) else set()
    ways = {op.phase for chunk in chunks for op in chunk.ops if op.name == SEND and op.phase is not Phase.STEP}
    ops, waiting = with_waits([*ops, *update], kernels, sent, 1 + len(ways))
    setup = tuple(Event(writer.storages[i].nbytes, 0, i) for i in writer.early if writer.storages[i].nbytes)
    first = chunks[0]
    note = f"At most {in_flight(tuple(steps))} micro-batches of its chunks are held at once."
    origin = replace(first.origin, notes=(*first.origin.notes, note))
    return replace(
        first,
        ops=tuple(ops),
        storages=writer.storages,
        setup=(*setup, *waiting),
        pinned=frozenset(writer.pinned),
        origin=origin,
    )


def _held_by_its_send(
    chunks: Sequence[Trace], steps: Sequence[Step], microbatches: int
) -> tuple[int, int, frozenset[int]] | None:
    """The micro-batch whose output the last send of 1F1B's first phase holds, until which backward, and the output.

    PyTorch's schedule keeps that send's handle until its last phase begins, and the handle keeps what was sent. Where
    so few of the `microbatches` are played that it would not show, the first one's output stands for it.
    """
    first = next((n for n, step in enumerate(steps) if step.phase != "F"), 0)
    last = max((n for n, step in enumerate(steps) if step.phase == "F"), default=0)
    sends = [op for op in chunks[0].ops if op.name == SEND and op.phase is Phase.FORWARD]
    if len(chunks) > 1 or first < 2 or last < first or not sends or not received(chunks[0]):
        return None
    shows = sum(step.phase == "F" for step in steps) >= 2 * first or microbatches < 2 * first
    return steps[first - 2 if shows else 0].microbatch, steps[last + 1].microbatch, frozenset(sends[0].reads)


def _lingering(ops: list[Op], own: Mapping[int, int], until: int, output: frozenset[int]) -> list[Op]:
    """`ops` with the frees of a micro-batch's output moved to the end of the backward pass of another one."""
    ids = {own[i] for i in output if i in own}
    freed = [event for op in ops for event in op.events if event.storage in ids and event.nbytes < 0]
    end = max(n for n, op in enumerate(ops) if op.name == f"dnnmem.backward.{until}")
    found = [op_like(op, events=tuple(event for event in op.events if event not in freed)) for op in ops]
    found[end] = op_like(found[end], events=(*found[end].events, *freed))
    return found


class _Writer:
    """Gives the storages of each chunk and micro-batch ids of their own."""

    def __init__(self, chunks: Sequence[Trace], copies: int, places: int, *, folded: bool) -> None:
        self.chunks, self.copies, self.places = chunks, copies, places
        ways = (Phase.FORWARD, Phase.BACKWARD) if folded else ()
        self.given = [_messages(chunk, RECEIVE, ways[1 - c : 2 - c]) for c, chunk in enumerate(chunks)]
        self.handed = [_messages(chunk, SEND, ways[c : c + 1]) for c, chunk in enumerate(chunks)]
        """What the two chunks give each other, by who takes it and by who makes it."""
        self.storages: dict[int, Storage] = {}
        self.pinned: set[int] = set()
        self.early: list[int] = []
        self.alive: set[int] = set()
        self.terms = [_terms(chunk) for chunk in chunks]
        self.grads: dict[tuple[int, int], int] = {}
        self.kept = self._kept()
        self.own: dict[tuple[int, int], dict[int, int]] = {}
        self.stays = [staying(chunk) for chunk in chunks]
        self.sent: dict[tuple[int, int], list[int]] = {}
        self.late = [_freed_late(chunk) for chunk in chunks]
        self.latest: dict[tuple[int, int], int] = {}
        self.gathered = [_gathered(chunk) for chunk in chunks]
        self.holders: dict[tuple[int, int], tuple[int, int]] = {}
        self.by_letter = [_by_letter(chunk) for chunk in chunks]
        self.begun: set[str] = set()
        self.sends = [_messages(chunk, SEND, (Phase.FORWARD, Phase.BACKWARD)) for chunk in chunks]
        self.on_wire: set[int] = set()
        """What has been sent."""
        self.phase = ""
        self.cleared: dict[int, Event] = {}
        """Frees of what a step leaves to the next one: what a backward pass's first part sends, what is handed on."""
        self.dropped: list[Event] = []
        """Frees of what a schedule lets go of once it has the next one."""
        self.kernels: list[int] = []
        """Of each op that has been made."""

    def _kept(self) -> list[dict[int, int]]:
        """For each chunk, ids of what is pinned; what two chunks of a rank share is there once."""
        seen: dict[int, tuple[Storage, int]] = {}
        found = []
        for chunk, terms, given in zip(self.chunks, self.terms, self.given, strict=True):
            messages = received(chunk)
            new: dict[int, int] = {}
            order = dict.fromkeys(e.storage for e in chunk.setup if e.nbytes > 0 and e.storage in chunk.pinned)
            made = set(terms.values())
            for i in (*order, *sorted(chunk.pinned - order.keys())):
                if i in made:
                    continue
                storage = chunk.storages[i] if i not in given else storage_like(chunk.storages[i], nbytes=0)
                known = seen.get(i)
                shared = storage.kind not in _OF_A_CHUNK and i not in messages
                if known is not None and known[0] == storage and shared:
                    new[i] = known[1]
                    continue
                new[i] = self._enter(storage)
                seen[i] = storage, new[i]
                self.pinned.add(new[i])
                if i in order and not is_of_first_step(storage):
                    self.early.append(new[i])
                if storage.nbytes:
                    self.alive.add(new[i])
                more = self.places - 1 if i in messages else self.copies if storage.kind is Kind.PARAM else 0
                for _ in range(more):
                    self.early.append(copy := self._enter(storage))
                    self.pinned.add(copy)
            found.append(new)
        return found

    def _enter(self, storage: Storage) -> int:
        new = len(self.storages)
        self.storages[new] = storage_like(storage, id=new)
        return new

    def _made(self, chunk: int, i: int) -> int:
        """An id for a micro-batch's own storage."""
        new = self._enter(self.chunks[chunk].storages[i])
        if i in self.sends[chunk] and i not in self.handed[chunk]:
            self.on_wire.add(new)
        return new

    def _ops_of(self, step: Step) -> list[Op]:
        letters = self.by_letter[step.chunk]
        if step.phase in "IW" and "I" not in letters:
            letters["I"], letters["W"] = backward_parts(self.chunks[step.chunk])
        return letters.get(step.phase, [])

    def ops(self, step: Step) -> list[Op]:
        """One forward or backward of a chunk: a single op, but where workspaces may be made on the way."""
        phase = Phase.FORWARD if step.phase == "F" else Phase.BACKWARD
        ops, self.phase = self._ops_of(step), step.phase
        each = [tuple(self._renamed(op.events, step.chunk, step.microbatch)) for op in ops]
        if each:
            each[-1], self.dropped = (*each[-1], *self.dropped), []
        counts = [*map(kernels_of, ops)]
        if step.phase not in self.begun:
            self.begun.add(step.phase)
            self.kernels += counts
            return [op_like(op, reads=(), writes=(), events=own) for op, own in zip(ops, each, strict=True)]
        self.kernels.append(sum(counts))
        name, events = f"dnnmem.{phase.value}.{step.microbatch}", tuple(event for own in each for event in own)
        return [Op(name=name, phase=phase, events=events, flops=sum(op.flops for op in ops))]

    def update(self) -> Iterator[Op]:
        """The optimizer's step: one over the parameters of all chunks, where their ops are alike."""
        lists = [[op for op in chunk.ops if op.phase is Phase.STEP] for chunk in self.chunks]
        if any([op.name for op in ops] != [op.name for op in lists[0]] for ops in lists):
            turns = [(c, op) for c, ops in enumerate(lists) for op in ops]
        else:
            turns = [(c, op) for row in zip(*lists, strict=True) for c, op in enumerate(row)]
        for c, op in turns:
            kept = self.kept[c]
            reads, writes = (tuple(kept[i] for i in ids if i in kept) for ids in (op.reads, op.writes))
            yield op_like(op, reads=reads, writes=writes, events=tuple(self._renamed(op.events, c, -1)))
        if self.grads:
            params = [(s.module, s.name) for s in self.storages.values() if s.kind is Kind.PARAM]
            place = {owner: n for n, owner in enumerate(params)}  # in which an optimizer goes through them
            grads = [self.storages[i] for i in self.grads.values()]
            grads.sort(key=lambda s: place.get((s.module, s.name), len(place)))
            events = tuple(Event(-s.nbytes, 0, s.id) for s in grads)
            yield Op(name="dnnmem.zero_grad", phase=Phase.STEP, events=events)
        if self.cleared:
            yield Op(name="dnnmem.clear.pp", phase=Phase.STEP, events=tuple(self.cleared.values()))

    def _renamed(self, events: Sequence[Event], chunk: int, microbatch: int) -> Iterator[Event]:
        """Events with the ids of a micro-batch; one that would free or allocate a pinned storage twice is left out."""
        kept, late, storages = self.kept[chunk], self.late[chunk], self.chunks[chunk].storages
        gathered, terms = self.gathered[chunk], self.terms[chunk]
        own = self.own.setdefault((chunk, microbatch), {})
        for event in events:
            nbytes, stream, i = event
            if i < 0:
                yield event
            elif i in late:
                yield from self._outliving(event, chunk, own)
            elif i in gathered:
                yield from self._held(event, chunk)
            elif i in terms and ((chunk, terms[i]) not in self.grads or own.get(i) == self.grads[chunk, terms[i]]):
                if nbytes > 0:  # the first term is the gradient
                    own[i] = self.grads[chunk, terms[i]] = self._enter(storages[terms[i]])
                    yield Event(nbytes, stream, own[i])
            elif (new := kept.get(i)) is None:
                if (new := own.get(i)) is None:
                    new = own[i] = self._made(chunk, i)
                yield Event(nbytes, stream, new)
            elif (new in self.alive) != (nbytes > 0):
                (self.alive.add if nbytes > 0 else self.alive.discard)(new)
                yield Event(nbytes, stream, new)

    def _held(self, event: Event, chunk: int) -> Iterator[Event]:
        """A gathered parameter is there once while any micro-batch in flight holds it."""
        nbytes, stream, i = event
        new, holders = self.holders.get((chunk, i), (-1, 0))
        if nbytes > 0 and not holders:
            new = self._enter(self.chunks[chunk].storages[i])
        now = holders + (1 if nbytes > 0 else -1)
        self.holders[chunk, i] = new, now
        if not holders or not now:
            yield Event(nbytes, stream, new)

    def _outliving(self, event: Event, chunk: int, own: dict[int, int]) -> Iterator[Event]:
        """What outlives its micro-batch; what is sent is freed at once for all of them."""
        nbytes, stream, i = event
        if i not in self.stays[chunk]:
            yield from self._replaced(event, chunk)
        elif nbytes > 0:
            own[i] = self._made(chunk, i)
            self.sent.setdefault((chunk, i), []).append(own[i])
            if self.phase == "I" or i in self.handed[chunk]:
                self.cleared[own[i]] = Event(-nbytes, stream, own[i])
            yield Event(nbytes, stream, own[i])
        else:
            sent = self.sent.pop((chunk, i), ())
            yield from (Event(nbytes, stream, new) for new in sent if new not in self.cleared)

    def _replaced(self, event: Event, chunk: int) -> Iterator[Event]:
        """What the program holds until the update, such as the loss: a micro-batch's replaces the one before."""
        nbytes, stream, i = event
        before = self.latest.pop((chunk, i), None)
        if nbytes > 0:
            new = self.latest[chunk, i] = self._made(chunk, i)
            yield Event(nbytes, stream, new)
        if before is not None:
            free = Event(-abs(nbytes), stream, before)
            if nbytes > 0 and i in self.sends[chunk]:
                self.dropped.append(free)  # once the pass that makes the next one is over
            else:
                yield free


def _messages(chunk: Trace, name: str, phases: Sequence[Phase]) -> set[int]:
    """Storages of a micro-batch that are sent, or received, in some passes."""
    return {i for op in chunk.ops if op.name == name and op.phase in phases for i in (*op.reads, *op.writes)}


def _freed_late(chunk: Trace) -> set[int]:
    """Storages of a micro-batch that are freed in the update."""
    made = {e.storage for op in chunk.ops if op.phase is not Phase.STEP for e in op.events if e.nbytes > 0}
    freed = {e.storage for op in chunk.ops if op.phase is Phase.STEP for e in op.events if e.nbytes < 0}
    return {i for i in made & freed if i >= 0 and i not in chunk.pinned}


def _gathered(chunk: Trace) -> set[int]:
    """Whole parameters that a micro-batch's forward pass leaves for its backward pass."""
    params = {(s.module, s.name) for s in chunk.storages.values() if s.kind is Kind.PARAM}
    made = {e.storage for op in chunk.ops if op.phase is Phase.FORWARD for e in op.events if e.nbytes > 0}
    freed = {e.storage for op in chunk.ops if op.phase is Phase.BACKWARD for e in op.events if e.nbytes < 0}
    crossing = [chunk.storages[i] for i in made & freed if i >= 0 and i not in chunk.pinned]
    return {s.id for s in crossing if s.kind is Kind.COMM and (s.module, s.name) in params}


def _by_letter(chunk: Trace) -> dict[str, list[Op]]:
    """Ops of whole passes; a forward that is run again is part of its backward, which follows at once."""
    forward = [op for op in chunk.ops if op.phase is Phase.FORWARD]
    backward = [op for op in chunk.ops if op.phase is Phase.BACKWARD]
    return {"F": forward, "B": backward}


def _terms(chunk: Trace) -> dict[int, int]:
    """What micro-batches add to gradients, and to which."""
    adds = (op for op in chunk.ops if op.name == _ADD and op.phase is Phase.BACKWARD and len(op.reads) == 2)
    found = ((op.reads, op.writes) for op in adds if op.writes == op.reads[:1] and op.writes[0] in chunk.pinned)
    return {term: grad for (grad, term), _ in found if chunk.storages[grad].kind is Kind.GRAD}
