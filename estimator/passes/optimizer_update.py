"""An update to be: ops appended one by one over the storages of a draft, with what they make and what they let go.

A rule of an optimizer calls `Update.op` in the order in which torch does, `make` for each temporary, and `hold` for
what a variable of torch's loop keeps until it is given its next value:

    sqrt (+a)   div (+b, -a)   add_ | denom = b   addcdiv_   sqrt (+a') ... add_ | denom = b' (-b)

>>> from dnnmem.estimator.trace import Trace
>>> p = Storage(id=0, nbytes=8, kind=Kind.PARAM, shape=(2,), dtype="float32")
>>> update = Update(Draft(Trace(ops=(), storages={0: p}, pinned=frozenset({0}))))
>>> root = update.make("aten.sqrt.default", (0,), [p])
>>> update.op("aten.add_.Tensor", (0, *root), (0,))
>>> update.free(root)
>>> [(op.name, op.moved_bytes, [e.nbytes for e in op.events]) for op in update.ops]
[('aten.sqrt.default', 16, [8]), ('aten.add_.Tensor', 24, [-8])]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage
from dnnmem.estimator.trace_copy import op_like, storage_like

OPTIMIZER = ("<optimizer>",)
"""The module of an update's ops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One place of the lists that an update works on."""

    param: int
    """What is updated: a parameter, or its master weights."""
    grad: int
    """Its gradient."""
    states: Mapping[str, int]
    """Its states by torch's names."""
    copy: int | None = None
    """The parameter that computes, where `param` is its master weights."""


class Update:
    """Ops in order; they run in the optimizer's step."""

    def __init__(self, draft: Draft) -> None:
        """`draft`: where storages are entered."""
        self.ops: list[Op] = []
        """What has been emitted."""
        self._draft = draft
        self._held: dict[str, tuple[int, ...]] = {}

    def storage(self, i: int) -> Storage:
        """The storage with id `i`."""
        return self._draft.storages[i]

    def op(
        self, name: str, reads: Sequence[int], writes: Sequence[int] = (), *, made: Sequence[int] = (), flops: int = 0
    ) -> None:
        """One op, which allocates `made` and moves all that it reads and writes once."""
        storages = self._draft.storages
        events = tuple(Event(storages[i].nbytes, 0, i) for i in made if storages[i].nbytes)
        moved = sum(storages[i].nbytes for i in (*reads, *writes))
        self.ops.append(
            Op(
                name=name, module=OPTIMIZER, phase=Phase.STEP, reads=tuple(reads), writes=tuple(writes),
                events=events, flops=flops, moved_bytes=moved,
            )
        )  # fmt: skip

    def make(self, name: str, reads: Sequence[int], like: Iterable[Storage], *, flops: int = 0) -> tuple[int, ...]:
        """An op whose outputs are new, and laid out as `like`; returns their ids."""
        made = tuple(self._draft.add(_temporary(s)) for s in like)
        self.op(name, reads, made, made=made, flops=flops)
        return made

    def hold(self, variable: str, ids: Sequence[int]) -> None:
        """A variable gets a new value after the last op: what it held before goes."""
        self.free(self._held.get(variable, ()))
        self._held[variable] = tuple(ids)

    def release(self, *variables: str) -> None:
        """The function returns: its variables go in this order."""
        for variable in variables:
            self.free(self._held.pop(variable, ()))

    def free(self, ids: Sequence[int]) -> None:
        """Free a list after the last op, from its end as Python does."""
        storages = self._draft.storages
        gone = tuple(Event(-storages[i].nbytes, 0, i) for i in reversed(ids) if storages[i].nbytes)
        if gone:
            self.ops[-1] = op_like(self.ops[-1], events=(*self.ops[-1].events, *gone))


def _temporary(like: Storage) -> Storage:
    return storage_like(like, kind=Kind.TEMP, module=OPTIMIZER, name="", saved=False)
