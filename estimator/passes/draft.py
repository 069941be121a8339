"""A trace that a pass is rewriting: ops by their recorded index, what goes before and after each, storages to be.

    before[k]   op k   after[k]        a pass decides over recorded indices; `finish` puts the pieces in order

>>> w = Storage(id=0, nbytes=8, kind=Kind.PARAM)
>>> draft = Draft(Trace(ops=(Op(name="f", reads=(0,)),), storages={0: w}, pinned=frozenset({0})))
>>> draft.before.setdefault(0, []).append(Op(name="g"))
>>> [op.name for op in draft.finish().ops]
['g', 'f']
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Generic, TypeVar

from dnnmem.estimator.first_step import is_kept, is_master, is_of_first_step, remade
from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

T = TypeVar("T")
UNPADDED = "before padding"
"""Name of what a larger storage takes the place of before the first step."""
SKIPPED = "dnnmem.skipped"
"""Name of an op that is not made."""


@dataclass(slots=True)
class Life:
    """When a storage is there and used; indices of ops."""

    made: int = -1
    """Op that allocates it first; -1 if it is pinned or empty."""
    freed: int = -1
    """Op that frees it last; -1 if none does."""
    uses: list[int] = field(default_factory=list)
    """Ops that read or write it, in order."""


class Same(Generic[T]):
    """What is known by being the same object: comparing it would cost more than is saved."""

    __slots__ = ("thing",)

    def __init__(self, thing: T) -> None:
        """Two of them are equal if their `thing` is one."""
        self.thing = thing

    def __hash__(self) -> int:
        """That of the object."""
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object."""
        return isinstance(other, Same) and self.thing is other.thing


def lives(ops: Sequence[Op]) -> dict[int, Life]:
    """The life of each storage that the ops touch; not to be changed, as several passes share it."""
    return _known_lives(Same(ops)) if isinstance(ops, tuple) else _lives(ops)


@lru_cache(maxsize=4)
def _known_lives(same: Same[tuple[Op, ...]]) -> dict[int, Life]:
    return _lives(same.thing)


def _lives(ops: Sequence[Op]) -> dict[int, Life]:
    found: dict[int, Life] = {}
    for k, op in enumerate(ops):
        for i in (*op.reads, *op.writes):
            life = found.get(i)
            if life is None:
                found[i] = Life(-1, -1, [k])
            elif not life.uses or life.uses[-1] != k:
                life.uses.append(k)
        for nbytes, _, i in op.events:
            if i >= 0:
                life = found.get(i)
                if life is None:
                    life = found[i] = Life()
                if nbytes < 0:
                    life.freed = k
                elif life.made < 0:
                    life.made = k
    return found


def back_uses(storage: Storage, life: Life, backward: Container[int]) -> list[int]:
    """Where ops of a backward pass need it: where they use it, or let go of what was saved only for its shape."""
    uses = [k for k in life.uses if k in backward]
    return uses or ([life.freed] if storage.saved and life.freed in backward else [])


class Draft:
    """The pieces of a trace to be."""

    def __init__(self, trace: Trace) -> None:
        """Start from `trace`, unchanged."""
        self.trace = trace
        self.ops: list[Op] = list(trace.ops)
        """By recorded index; replace entries freely."""
        self.before: dict[int, list[Op]] = {}
        """Ops that go in front of a recorded one."""
        self.after: dict[int, list[Op]] = {}
        """Ops that follow a recorded one."""
        self.storages: dict[int, Storage] = dict(trace.storages)
        """By id; replace entries freely, then events of `ops` need their sizes: `resize`."""
        self.pinned: set[int] = set(trace.pinned)
        """What the step leaves alive."""
        self.start: list[Event] = []
        """What is allocated and freed after the pinned but for inputs; what then lives, goes with the first step."""
        self.padded: dict[int, int] = {
            made.storage: gone.storage
            for made, gone in pairwise(trace.setup)
            if gone.nbytes < 0 <= gone.storage and trace.storages[gone.storage].name == UNPADDED
        }
        """What takes the place of a smaller storage, which goes, when all else is there."""
        self._next = max(trace.storages, default=-1) + 1

    def add(self, storage: Storage) -> int:
        """Enter a storage under an id of its own, which is returned; `storage.id` does not count."""
        new = self._next
        self._next += 1
        self.storages[new] = storage_like(storage, id=new)
        return new

    def free(self, k: int, storage: int) -> None:
        """Free a storage at the end of op `k`."""
        if self.storages[storage].nbytes:
            event = Event(-self.storages[storage].nbytes, 0, storage)
            self.ops[k] = op_like(self.ops[k], events=(*self.ops[k].events, event))

    def unfree(self, k: int, storage: int) -> None:
        """Take back that op `k` frees a storage."""
        kept = tuple(e for e in self.ops[k].events if e.storage != storage or e.nbytes > 0)
        self.ops[k] = op_like(self.ops[k], events=kept)

    def skip(self, k: int) -> None:
        """Leave out op `k` and what it makes; what else it frees and lets go, the next one does."""
        op, later = self.ops[k], self.ops[k + 1]
        kept = tuple(e for e in op.events if e.storage >= 0 and e.storage not in op.writes)
        self.ops[k + 1] = op_like(later, events=(*kept, *later.events), releases=(*op.releases, *later.releases))
        self.ops[k] = op_like(op, name=SKIPPED, reads=(), writes=(), events=(), releases=())

    def resize(self, sizes: Mapping[int, int]) -> None:
        """Give storages other sizes in bytes, and their events with them; for ops by index only, not those between."""
        for i, nbytes in sizes.items():
            if self.storages[i].nbytes != nbytes:
                self.storages[i] = storage_like(self.storages[i], nbytes=nbytes)
        for k, op in enumerate(self.ops):
            for _, _, i in op.events:
                if i in sizes:
                    self.ops[k] = op_like(op, events=resized(op.events, sizes))
                    break

    def _is_start(self, storage: int) -> bool:
        found = self.storages[storage]
        return storage not in self.pinned and found.kind is Kind.COMM and found.name != UNPADDED

    def _unpadded(self, i: int, sign: int) -> tuple[Event, ...]:
        """What comes (1) or goes (-1) where `i` is padded later."""
        small = self.storages[self.padded[i]]
        return (Event(sign * small.nbytes, 0, small.id),) if small.nbytes else ()

    def finish(self, *notes: str) -> Trace:
        """The trace; its set-up allocates what is pinned, in the recorded order, new storages last, then `start`.

        Where there is a `start`, or masters, inputs follow: batches come when the model is there. What the first steps
        make is left out: the optimizer's states, workspaces, buckets of gradients, gradients that each makes anew.
        """
        ops: list[Op] = []
        for k, op in enumerate(self.ops):
            ops += self.before.get(k, ())
            if op.name != SKIPPED:
                ops.append(op)
            ops += self.after.get(k, ())
        later = {small: i for i, small in self.padded.items()}
        places = (later.get(e.storage, e.storage) for e in self.trace.setup if e.nbytes > 0)
        order = dict.fromkeys(i for i in places if i in self.pinned)
        order.update(dict.fromkeys(sorted(self.pinned)))
        held = [s for s in (self.storages[i] for i in order) if s.nbytes]
        again = {e.storage for op in ops for e in op.events} if any(map(is_kept, held)) else set()
        absent = remade(ops, held)
        first = [s for s in held if s.id not in absent and (not is_of_first_step(s) or (is_kept(s) and s.id in again))]
        start = [e for e in self.trace.setup if e.storage in self.storages and self._is_start(e.storage)] + self.start
        waits = bool(start) or any(is_master(s) for s in first)
        late = [s.id for s in first if waits and s.kind is Kind.INPUT]
        moves = _moves(self.trace, self.storages)
        made = (
            e
            for s in first if s.id not in late
            for e in (self._unpadded(s.id, 1) if s.id in self.padded else moves.get(s.id, (Event(s.nbytes, 0, s.id),)))
        )  # fmt: skip
        here = {s.id for s in first}
        last = (
            e for i in self.padded if i in here for e in (Event(self.storages[i].nbytes, 0, i), *self._unpadded(i, -1))
        )
        setup = (*made, *start, *(Event(self.storages[i].nbytes, 0, i) for i in late), *last)
        origin = self.trace.origin
        if notes:
            origin = replace(origin, notes=(*origin.notes, *notes))
        return replace(
            self.trace,
            ops=tuple(ops),
            storages=self.storages,
            setup=setup,
            pinned=frozenset(self.pinned),
            origin=origin,
        )


def _moves(trace: Trace, now: Mapping[int, Storage]) -> dict[int, tuple[Event, ...]]:
    """What the set-up did to bring several tensors into one block, where that is as large as it was."""
    found: dict[int, tuple[Event, ...]] = {}
    for k, (nbytes, _, i) in enumerate(trace.setup):
        count = len(trace.storages[i].parts) if i in trace.storages else 0
        if not count or k < count or nbytes <= 0 or i not in now or now[i].nbytes != nbytes:
            continue
        before, after = trace.setup[k - count : k], trace.setup[k + 1 : k + 1 + count]
        if [(e.nbytes, e.storage) for e in before] == [(-e.nbytes, e.storage) for e in after]:
            found[i] = trace.setup[k - count : k + 1 + count]
    return found


def resized(events: Iterable[Event], sizes: Mapping[int, int]) -> tuple[Event, ...]:
    """Events with storages of other sizes; what has no bytes has no events."""
    found = []
    for event in events:
        old, stream, i = event
        nbytes = sizes.get(i)
        if nbytes is None:
            found.append(event)
        elif nbytes:
            found.append(Event(nbytes if old > 0 else -nbytes, stream, i))
    return tuple(found)


def made_storage(nbytes: int, kind: Kind, name: str, like: Storage | None = None) -> Storage:
    """A storage for `Draft.add`, in the place of `like`."""
    if like is None:
        return Storage(id=0, nbytes=nbytes, kind=kind, name=name)
    return storage_like(like, id=0, nbytes=nbytes, kind=kind, name=name, saved=False)
