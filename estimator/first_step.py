"""What the first training step makes that every later one finds: states of the optimizer, libraries' workspaces.

    first step    forward | backward | [states] update        others    forward | backward | update
                  [workspace of the first product]

It leaves the allocator's memory cut in other pieces than a step would that found all of it. What modules keep of their
first call (cuDNN's states of dropout, tables of positions) is made then as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace

FIRST_STEP = frozenset({Kind.OPTIMIZER, Kind.TEMP, Kind.COMM})
"""What the first step makes and leaves alive: states of the optimizer, workspaces of libraries; and buckets that are
made when it is over, in the place of what the set-up had for them."""
_OPTIMIZER = ("<optimizer>",)
MASTER = ".master"
"""How names of masters end."""
_OWN_WORKSPACES = ("convolution", "attention")
"""In names of ops whose products are not cuBLAS's, and do not use its workspace."""


def is_of_first_step(storage: Storage) -> bool:
    """True for what no step finds when training begins; masters are made with the optimizer."""
    return (storage.kind in FIRST_STEP and not is_master(storage)) or is_kept(storage)


def is_kept(storage: Storage) -> bool:
    """True for a buffer that an op made, whose name it has."""
    return storage.kind is Kind.BUFFER and storage.name.startswith("aten.")


def is_master(storage: Storage) -> bool:
    """True for what an update works on in the place of a narrower parameter."""
    return storage.kind is Kind.OPTIMIZER and storage.name.endswith(MASTER)


def has_own_workspace(op: Op) -> bool:
    """True for products that do not use cuBLAS's."""
    return any(kernel in op.name for kernel in _OWN_WORKSPACES)


def remade(ops: Sequence[Op], storages: Iterable[Storage]) -> frozenset[int]:
    """Ids of gradients that a step finds, lets go of (`zero_grad` before the backward pass) and makes anew.

    The first step finds none.
    """
    begins: dict[int, int] = {}
    for op in ops:
        for event in op.events:
            begins.setdefault(event.storage, event.nbytes)
    return frozenset(s.id for s in storages if s.kind is Kind.GRAD and begins.get(s.id, 0) < 0)


class Unmade:
    """States that are not made yet, while one goes through the ops of the first step."""

    def __init__(self, trace: Trace, states: Sequence[Storage]) -> None:
        """None of `states` is made."""
        self.storages = trace.storages
        self.rounded = _rounded(trace)
        """States that are made when they are first rounded to, after their parameter's update."""
        self.left = {s.id: (s.module, s.name.rpartition(".")[0]) for s in states}
        """The parameters that they belong to, by their ids."""
        self.of_parameter: dict[tuple[tuple[str, ...], str], list[int]] = defaultdict(list)
        for i, owner in self.left.items():
            self.of_parameter[owner].append(i)

    def due(self, op: Op) -> list[int]:
        """Those that an optimizer makes before `op`: all of them once it begins its update; they are made then.

        Casts and norms of gradients come before that. An update in the backward pass makes those of its own parameter.
        """
        if not self.left or not (op.phase is Phase.STEP or op.module[:1] == _OPTIMIZER or self._uses_some(op)):
            return []
        mine = self._begun(op) if op.phase is Phase.STEP else self._own(op)
        mine = [i for i in mine if i not in self.rounded] + [i for i in self.left if self.rounded.get(i) is op]
        for i in mine:
            del self.left[i]
        return mine

    def _uses_some(self, op: Op) -> bool:
        left = self.left
        return not (left.keys().isdisjoint(op.reads) and left.keys().isdisjoint(op.writes))

    def _begun(self, op: Op) -> list[int]:
        touched = (self.storages[i].kind for i in (*op.reads, *op.writes) if i in self.storages)
        begins = len(op.module) > 1 and op.module[:1] == _OPTIMIZER  # a part of an update
        return list(self.left) if begins or any(kind in (Kind.PARAM, Kind.OPTIMIZER) for kind in touched) else []

    def _own(self, op: Op) -> list[int]:
        used = [i for i in (*op.reads, *op.writes) if i in self.storages]
        owners = dict.fromkeys(self.left[i] for i in used if i in self.left)
        if op.module[:1] == _OPTIMIZER:
            params = (self.storages[i] for i in used if self.storages[i].kind is Kind.PARAM)
            owners |= dict.fromkeys((s.module, s.name) for s in params)
        return sorted(i for owner in owners for i in self.of_parameter.pop(owner, ()) if i in self.left)


def _rounded(trace: Trace) -> dict[int, Op]:
    """Moments in 16 bits that are copied from float32, and the copy: an update widens them again only once they are."""
    found: dict[int, Op] = {}
    for op in trace.ops:
        if op.module[:1] == _OPTIMIZER and op.name == "aten.copy_.default" and op.reads and op.writes:
            wide, narrow = (trace.storages[ids[-1]] for ids in (op.reads, op.writes))
            if narrow.kind is Kind.OPTIMIZER and narrow.nbytes < wide.nbytes:
                found[narrow.id] = op
    return found


def first_step(trace: Trace, late: Sequence[Storage]) -> list[Event]:
    """Events of a step that also makes the states, before its update, and workspaces, in the first products of a pass.

    What modules keep comes before it is used first. The backward pass runs on a thread with a workspace of its own.
    Gradients among `late` are not there yet when the step lets go of them.
    """
    absent = {s.id for s in late if s.kind is Kind.GRAD}
    late = [s for s in late if s.id not in absent]
    unmade = Unmade(trace, [s for s in late if s.kind is Kind.OPTIMIZER])
    spaces: dict[Phase, list[Storage]] = {phase: [] for phase in Phase}
    kept = {s.id: s for s in late if is_kept(s)}
    for n, s in enumerate(s for s in late if s.kind is not Kind.OPTIMIZER and s.id not in kept):
        spaces[Phase.BACKWARD if n % 2 else Phase.FORWARD].append(s)
    events: list[Event] = []
    for op in trace.ops:
        events += [Event(trace.storages[i].nbytes, 0, i) for i in unmade.due(op)]
        if kept:
            events += [Event(kept.pop(i).nbytes, 0, i) for i in (*op.reads, *op.writes) if i in kept]
        for event in op.events:
            if event.storage in absent:
                absent.remove(event.storage)
            else:
                events.append(event)
        if op.flops and spaces[op.phase] and not has_own_workspace(op):
            s = spaces[op.phase].pop(0)
            events.append(Event(s.nbytes, 0, s.id))
    left = [*kept.values(), *(trace.storages[i] for i in unmade.left), *(s for some in spaces.values() for s in some)]
    return [*events, *(Event(s.nbytes, 0, s.id) for s in left)]
