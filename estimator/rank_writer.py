"""What a pipeline's rank does, written out micro-batch by micro-batch: each storage of a chunk's trace by its own id.

    chunk     t  g  p          rank     t0 t1 t2  g  p        of a micro-batch, of a step, of the whole training

A gradient is made by a step's first backward pass, added to by the others, and goes with the update. What a chunk of a
rank hands to the next one is there until the next step's takes its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence

from dnnmem.estimator.first_step import is_of_first_step
from dnnmem.estimator.passes.backward_parts import backward_parts
from dnnmem.estimator.passes.fsdp_stages import (
    Owner,
    fetches,
    gathered_by,
    gathers,
    is_reduction,
    sums_apart,
    whole_parameters,
)
from dnnmem.estimator.passes.pipeline_buffers import RECEIVE, SEND, received, staying
from dnnmem.estimator.rank_chunk import freed_late_of, in_turns, lent_gradients, messages_of, terms_of
from dnnmem.estimator.schedules.grid import Step
from dnnmem.estimator.send_waits import kernels_of
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

_OF_A_CHUNK = frozenset({Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER, Kind.COMM})
"""Kinds that each chunk has for itself, even where chunks of a rank are one trace."""
_SIDE_STREAMS = 8
"""More than a chunk has: each is a root of FSDP2, which gathers and sends on streams of its own."""


class Writer:
    """Gives the storages of each chunk and micro-batch ids of their own."""

    def __init__(
        self, chunks: Sequence[Trace], passes: Sequence[dict[str, list[Op]]], copies: int, places: int, *, folded: bool
    ) -> None:
        """`passes`: of each chunk, the ops of its whole forward and backward pass."""
        self.chunks, self.copies, self.places = chunks, copies, places
        ways = (Phase.FORWARD, Phase.BACKWARD) if folded else ()
        self.given = [messages_of(chunk, RECEIVE, ways[1 - c : 2 - c]) for c, chunk in enumerate(chunks)]
        self.handed = [messages_of(chunk, SEND, ways[c : c + 1]) for c, chunk in enumerate(chunks)]
        """What the two chunks give each other, by who takes it and by who makes it."""
        self.storages: dict[int, Storage] = {}
        self.pinned: set[int] = set()
        self.early: list[int] = []
        self.alive: set[int] = set()
        self.terms = [terms_of(chunk) for chunk in chunks]
        self.grads: dict[tuple[int, int], int] = {}
        self.same = lent_gradients(chunks, self.terms)
        self.kept = self._kept()
        self.own: dict[tuple[int, int], dict[int, int]] = {}
        self.stays = [staying(chunk) for chunk in chunks]
        self.sent: dict[tuple[int, int], list[int]] = {}
        self.late = [freed_late_of(chunk) for chunk in chunks]
        self.latest: dict[tuple[int, int], int] = {}
        self.whole = [whole_parameters(chunk) for chunk in chunks]
        self.lives: dict[tuple[int, Owner], int] = {}
        """Parameters that are whole now, by chunk."""
        self.apart, self.sums = [sums_apart(chunk) for chunk in chunks], dict[tuple[int, int], int]()
        """Gradients in another type than a micro-batch's, and those that are there."""
        self.fetches: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        """Of chunks that are gathered whole: buffers, and the parameters that are copied out of each."""
        self.waiting: list[Event] = []
        """Frees of gathers' buffers that wait for the next gather."""
        self.by_letter = passes
        self.begun: set[str] = set()
        self.sends = [messages_of(chunk, SEND, (Phase.FORWARD, Phase.BACKWARD)) for chunk in chunks]
        self.on_wire: set[int] = set()
        """What has been sent."""
        self.phase = ""
        self.cleared: dict[int, Event] = {}
        """Frees of what a step leaves to the next one: what a backward pass's first part sends."""
        self.resting = {(c, i): self._resting(c, i) for c, ids in enumerate(self.handed) for i in ids & self.stays[c]}
        """What the last step's micro-batches have handed on, by chunk."""
        self.first: dict[tuple[int, int], Event] = {}
        self.gone: dict[tuple[int, int], Event] = {}
        """What of it has come first, and what has gone last, whose id is free: the first one has that in the end."""
        self.dropped: list[Event] = []
        """Frees of what a schedule lets go of once it has the next one."""
        self.kernels: list[int] = []
        """Of each op that has been made."""

    def _kept(self) -> list[dict[int, int]]:
        """For each chunk, ids of what is pinned; what two chunks of a rank share is there once."""
        seen: dict[int, tuple[Storage, int, int]] = {}
        found = []
        places: list[tuple[tuple[int, int], int]] = []
        for c, (chunk, terms, given) in enumerate(zip(self.chunks, self.terms, self.given, strict=True)):
            messages, forward = received(chunk), messages_of(chunk, RECEIVE, (Phase.FORWARD,))
            new: dict[int, int] = {}
            order = dict.fromkeys(e.storage for e in chunk.setup if e.nbytes > 0 and e.storage in chunk.pinned)
            made = set(terms.values())
            for i in (*order, *sorted(chunk.pinned - order.keys())):
                if i in made:
                    continue
                storage = chunk.storages[i] if i not in given else storage_like(chunk.storages[i], nbytes=0)
                known = seen.get(i)
                shared = storage.kind not in _OF_A_CHUNK and i not in messages
                tied = storage.kind is Kind.PARAM and known is not None and known[2] != id(chunk)
                if known is not None and known[0] == storage and (shared or tied):
                    new[i] = known[1]
                    continue
                new[i] = self._enter(storage)
                seen[i] = storage, new[i], id(chunk)
                more = self.places - 1 if i in messages else self.copies if storage.kind is Kind.PARAM else 0
                early = [new[i]] if i in order and not is_of_first_step(storage) else []
                early += [self._enter(storage) for _ in range(more)]
                self.pinned.update((new[i], *early))
                if storage.nbytes:
                    self.alive.add(new[i])
                if i in messages:
                    places += (((0, c) if i in forward else (1, -c), one) for one in early)
                else:
                    self.early += early
            found.append(new)
        self.early += (one for _, one in sorted(places))  # stages are made ready forward, then backward
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
        each = [self._events(op, step.chunk, step.microbatch) for op in ops]
        if each:
            each[-1], self.dropped, self.waiting = (*each[-1], *self.waiting, *self.dropped), [], []
        counts = [*map(kernels_of, ops)]
        if step.phase not in self.begun:
            self.begun.add(step.phase)
            self.kernels += counts
            return [op_like(op, reads=(), writes=(), events=own) for op, own in zip(ops, each, strict=True)]
        self.kernels.append(sum(counts))
        name, events = f"dnnmem.{phase.value}.{step.microbatch}", tuple(event for own in each for event in own)
        return [Op(name=name, phase=phase, events=events, flops=sum(op.flops for op in ops))]

    def ahead(self, steps: Sequence[Step], apart: Collection[int]) -> list[tuple[list[int], list[int]]]:
        """Before each step, what `fetches` has, where the schedule gathers chunks and there is something to gather."""
        there = any(self.whole) and any(map(received, self.chunks)) and (apart or self.chunks[1:])
        return fetches(steps) if there else [([], []) for _ in steps]

    def fetched(self, gone: Sequence[int], new: Sequence[int], now: int) -> Iterator[Op]:
        """Drop chunks and gather others, all at once; what is gathered is copied out when there is work for it."""
        dropped = [self.lives.pop(key) for key in [*self.lives] if key[0] in gone]
        frees = [Event(-self.storages[i].nbytes, 0, i) for i in dropped]
        for c in new:
            self.fetches[c] = [(self._enter(flat), op.writes) for flat, op in gathers(self.chunks[c])]
        flats = [self.storages[flat] for c in new for flat, _ in self.fetches[c]]
        out: list[Event] = []
        for flat, whole in self.fetches.pop(now, ()):
            made = (Event(self.chunks[now].storages[i].nbytes, 0, i) for i in whole)
            out += (e for event in made if event.nbytes for e in self._held(event, now))
            out.append(Event(-self.storages[flat].nbytes, 0, flat))
        events = (*frees, *(Event(flat.nbytes, 0, flat.id) for flat in flats), *out)
        if events:
            self.kernels.append(len(out))
            yield Op(name="dnnmem.all_gather.chunk", phase=Phase.FORWARD, events=events)

    def reductions(self, n: int, ends: Mapping[int, int]) -> Iterator[Op]:
        """What reduces the gradients of the chunks whose last step is the `n`-th: each stage's as soon as it can be."""
        for c in (c for c, end in ends.items() if end == n):
            for op in filter(is_reduction, self.chunks[c].ops):
                self.kernels.append(kernels_of(op))
                yield op_like(op, reads=(), writes=(), events=tuple(self._renamed(op.events, c, -1)))

    def update(self) -> Iterator[Op]:
        """The optimizer's step: one over the parameters of all chunks, where their ops are alike."""
        lists = [[op for op in chunk.ops if op.phase is Phase.STEP and not is_reduction(op)] for chunk in self.chunks]
        for row in in_turns(lists):
            parts = [(self.kept[c], op) for c, op in row]
            reads = tuple(kept[i] for kept, op in parts for i in op.reads if i in kept)
            writes = tuple(kept[i] for kept, op in parts for i in op.writes if i in kept)
            events = tuple(event for c, op in row for event in self._renamed(op.events, c, -1))
            moved = sum(op.moved_bytes for _, op in row)
            yield op_like(row[0][1], reads=reads, writes=writes, events=events, moved_bytes=moved)
        if self.grads:
            params = [(s.module, s.name) for s in self.storages.values() if s.kind is Kind.PARAM]
            place = {owner: n for n, owner in enumerate(params)}  # in which an optimizer goes through them
            grads = [self.storages[i] for i in self.grads.values()]
            grads.sort(key=lambda s: place.get((s.module, s.name), len(place)))
            events = tuple(Event(-s.nbytes, 0, s.id) for s in grads)
            yield Op(name="dnnmem.zero_grad", phase=Phase.STEP, events=events)
        renamed = (event for key, first in self.first.items() for event in (first, self.gone[key]))
        if events := (*self.cleared.values(), *renamed):
            yield Op(name="dnnmem.clear.pp", phase=Phase.STEP, events=events)

    def _renamed(self, events: Sequence[Event], chunk: int, microbatch: int) -> Iterator[Event]:
        """Events with the ids of a micro-batch; one that would free or allocate a pinned storage twice is left out."""
        kept, late, whole, terms = self.kept[chunk], self.late[chunk], self.whole[chunk], self.terms[chunk]
        own, grads = self.own.setdefault((chunk, microbatch), {}), {*terms.values()}
        for event in events:
            i = event.storage
            if event.stream:
                event = event._replace(stream=event.stream + chunk * _SIDE_STREAMS)  # noqa: PLW2901
            if i < 0:
                yield event
            elif i in whole:
                yield from self._held(event, chunk)
            elif i in self.apart[chunk]:
                yield from self._added_apart(event, chunk)
            elif i in grads or i in terms:
                yield from self._summed(event, chunk, own)
            elif i in late:
                yield from self._outliving(event, chunk, own)
            elif i in kept:
                yield from self._toggled(event, kept[i])
            else:
                yield from self._of_microbatch(event, chunk, own)

    def _summed(self, event: Event, chunk: int, own: dict[int, int]) -> Iterator[Event]:
        """What micro-batches add to gradients: the first term is the gradient, which what reduces it may free."""
        nbytes, stream, i = event
        grad = self.terms[chunk].get(i, -1)
        key = self.same.get((chunk, grad), (chunk, grad))
        known = self.grads.get(key)
        if grad < 0:
            if nbytes < 0:
                yield Event(nbytes, stream, self.grads.pop((chunk, i)))
        elif known is not None and own.get(i) != known:
            yield from self._of_microbatch(event, chunk, own)
        elif nbytes > 0:
            own[i] = self.grads[key] = self._enter(self.chunks[chunk].storages[grad])
            yield Event(nbytes, stream, own[i])

    def _added_apart(self, event: Event, chunk: int) -> Iterator[Event]:
        nbytes, stream, i = event
        if nbytes < 0:
            yield Event(nbytes, stream, self.sums.pop((chunk, i)))
        elif (chunk, i) not in self.sums:
            self.sums[chunk, i] = self._enter(self.chunks[chunk].storages[i])
            yield Event(nbytes, stream, self.sums[chunk, i])

    def _toggled(self, event: Event, new: int) -> Iterator[Event]:
        if (new in self.alive) != (event.nbytes > 0):
            (self.alive.add if event.nbytes > 0 else self.alive.discard)(new)
            yield event._replace(storage=new)

    def _of_microbatch(self, event: Event, chunk: int, own: dict[int, int]) -> Iterator[Event]:
        """A storage of the micro-batch's own; the buffer of a gather that was not needed has never been."""
        i = event.storage
        if i not in own and event.nbytes < 0:
            return
        if i not in own:
            own[i] = self._made(chunk, i)
        yield event._replace(storage=own[i])

    def _events(self, op: Op, chunk: int, microbatch: int) -> tuple[Event, ...]:
        """Events of an op of a micro-batch; what is whole already is not gathered."""
        owners = gathered_by(op, self.chunks[chunk])
        if not owners:
            return tuple(self._renamed(op.events, chunk, microbatch))
        if all((chunk, owner) in self.lives for owner in owners):
            own, mine = self.own.setdefault((chunk, microbatch), {}), self.whole[chunk]
            late = tuple(e for e in op.events if e.nbytes < 0 and e.storage not in mine and e.storage in own)
            self.waiting += self._renamed(late, chunk, microbatch)
            return ()
        found = tuple(self._renamed(op.events, chunk, microbatch))
        if op.lane is not Lane.COMM:
            found, self.waiting = (*found, *self.waiting), []
        return found

    def _held(self, event: Event, chunk: int) -> Iterator[Event]:
        """A parameter is whole once, from the first gather to what drops it."""
        nbytes, stream, i = event
        key = chunk, self.whole[chunk][i]
        if (key in self.lives) == (nbytes > 0):
            return
        if nbytes > 0:
            self.lives[key] = self._enter(self.chunks[chunk].storages[i])
        new = self.lives[key]
        if nbytes < 0:
            del self.lives[key]
        yield Event(nbytes, stream, new)

    def _outliving(self, event: Event, chunk: int, own: dict[int, int]) -> Iterator[Event]:
        """What outlives its micro-batch; what is sent is freed at once for all of them."""
        nbytes, stream, i = event
        if i not in self.stays[chunk]:
            yield from self._replaced(event, chunk)
        elif nbytes > 0 and (chunk, i) in self.resting:
            own[i] = self._handed(event, self.resting[chunk, i], chunk)
            yield Event(nbytes, stream, own[i])
        elif nbytes > 0:
            own[i] = self._made(chunk, i)
            self.sent.setdefault((chunk, i), []).append(own[i])
            if self.phase == "I":
                self.cleared[own[i]] = Event(-nbytes, stream, own[i])
            yield Event(nbytes, stream, own[i])
        else:
            sent = self.sent.pop((chunk, i), ())
            yield from (Event(nbytes, stream, new) for new in sent if new not in self.cleared)

    def _resting(self, chunk: int, i: int) -> deque[int]:
        """What the last step's micro-batches have handed on."""
        storage = storage_like(self.chunks[chunk].storages[i], kind=Kind.INPUT)
        ids = [self._enter(storage) for _ in range(self.places)]
        self.pinned.update(ids)
        self.early += ids
        return deque(ids)

    def _handed(self, event: Event, resting: deque[int], chunk: int) -> int:
        """Whose id a storage has that is handed on: it takes the place of the last step's, which goes then."""
        nbytes, stream, i = event
        new = self.gone[chunk, i].storage if (chunk, i) in self.gone else self._made(chunk, i)
        self.first.setdefault((chunk, i), Event(-nbytes, stream, new))
        self.gone[chunk, i] = Event(nbytes, stream, resting.popleft())
        self.dropped.append(self.gone[chunk, i]._replace(nbytes=-nbytes))
        return new

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
