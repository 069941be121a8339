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
from math import prod

from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.passes.update import element_bytes
from dnnmem.estimator.reduction import Threads, buffers
from dnnmem.estimator.trace import Event, Kind, Op, Part, Phase, Storage
from dnnmem.estimator.trace_copy import op_like, storage_like

_OTHER_SIZES = {"bool": 1, "int64": 8}
OPTIMIZER = ("<optimizer>",)
"""The module of an update's ops."""
RENEWAL = (*OPTIMIZER, "renewal")
"""That of those which only each n-th update has."""


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
    hidden: bool = False
    """A matrix inside of the model: neither an embedding nor what gives its output."""


class Update:
    """Ops in order; they run in the optimizer's step."""

    def __init__(self, draft: Draft, threads: Threads | None = None) -> None:
        """`draft`: where storages are entered; `threads`: of the GPU, None = reductions need nothing inside."""
        self.ops: list[Op] = []
        """What has been emitted."""
        self.every = 1
        """Ops that follow are those of each `every`-th step: their time is a part of what they take."""
        self._draft, self._threads = draft, threads
        self._held: dict[str, tuple[int, ...]] = {}
        self._parts: dict[int, tuple[int, Storage]] = {}

    def storage(self, i: int) -> Storage:
        """The storage with id `i`."""
        return self._parts[i][1] if i in self._parts else self._draft.storages[i]

    def part(self, i: int, tensor: Part) -> int:
        """An id, for ops, of a tensor in the storage `i`; that one's where it is all of it."""
        whole = self._draft.storages[i]
        if not whole.parts:
            return i
        self._parts[-1 - len(self._parts)] = i, storage_like(shaped(whole, tensor.shape), name=tensor.name)
        return -len(self._parts)

    def whole(self, i: int) -> int:
        """The storage that a tensor is a part of; itself where it is none."""
        return self._parts[i][0] if i in self._parts else i

    def op(
        self,
        name: str,
        reads: Sequence[int],
        writes: Sequence[int] = (),
        *,
        made: Sequence[int] = (),
        flops: int = 0,
        first: Sequence[int] = (),
        inside: Sequence[int] = (),
        moved: int | None = None,
    ) -> None:
        """One op, which allocates `made` and moves all that it reads and writes once.

        What is there twice in `reads` is read twice. Bytes of temporaries inside: `first` come before what is made,
        `inside` after it. `moved`: bytes, where these are not all.
        """
        storage, whole = self.storage, self.whole
        before = [Event(nbytes, 0, -1 - n) for n, nbytes in enumerate(first) if nbytes]
        during = [Event(nbytes, 0, -1 - len(before) - n) for n, nbytes in enumerate(inside) if nbytes]
        outputs = [Event(storage(i).nbytes, 0, i) for i in made if storage(i).nbytes]
        gone = [Event(-e.nbytes, 0, e.storage) for e in (*reversed(during), *reversed(before))]
        if moved is None:
            moved = sum(storage(i).nbytes for i in (*reads, *writes))
        self.ops.append(
            Op(
                name=name, module=RENEWAL if self.every > 1 else OPTIMIZER, phase=Phase.STEP,
                reads=tuple(dict.fromkeys(map(whole, reads))), writes=tuple(dict.fromkeys(map(whole, writes))),
                events=(*before, *outputs, *during, *gone), flops=flops // self.every, moved_bytes=moved // self.every,
            )
        )  # fmt: skip

    def copy(self, target: int, source: int) -> None:
        """`target.copy_(source)`."""
        moved = self.storage(target).nbytes + self.storage(source).nbytes
        self.op("aten.copy_.default", (target, source), (target,), moved=moved)

    def make(
        self,
        name: str,
        reads: Sequence[int],
        like: Iterable[Storage],
        *,
        flops: int = 0,
        first: Sequence[int] = (),
        inside: Sequence[int] = (),
        moved: int | None = None,
    ) -> tuple[int, ...]:
        """An op whose outputs are new, and laid out as `like`; returns their ids."""
        made = tuple(self._draft.add(_temporary(s)) for s in like)
        self.op(name, reads, made, made=made, flops=flops, first=first, inside=inside, moved=moved)
        return made

    def reduce(self, name: str, tensor: int, like: Storage, dims: Sequence[int] = ()) -> tuple[int, ...]:
        """A sum or norm over `dims`, over all where there are none; returns the output's id."""
        s, inside = self.storage(tensor), tuple[int, ...]()
        if self._threads is not None and s.shape:
            inside = buffers((s.shape, _strides(s)), dims, gpu=self._threads)
        return self.make(name, (tensor,), [like], inside=inside)

    def product(self, left: int, right: int, shape: tuple[int, int], between: int) -> tuple[int, ...]:
        """A new matrix of `shape`, summed over `between`."""
        like = shaped(self.storage(left), shape)
        return self.make("aten.mm.default", (left, right), [like], flops=2 * shape[0] * shape[1] * between)

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
    return storage_like(like, kind=Kind.TEMP, module=OPTIMIZER, name="", saved=False, parts=())


def shaped(like: Storage, shape: tuple[int, ...], dtype: str | None = None) -> Storage:
    """A layout of `shape` in rows, in the type of `like` or another."""
    kind = dtype or like.dtype
    size = _OTHER_SIZES.get(kind) or element_bytes(kind)
    return storage_like(like, shape=shape, dtype=kind, nbytes=prod(shape) * size, parts=())


def _strides(storage: Storage) -> tuple[int, ...]:
    """Of its tensor."""
    order = list(range(len(storage.shape)))
    if storage.channels_last and len(order) > 2:
        order = [0, *order[2:], 1]
    strides, step = [0] * len(order), 1
    for d in reversed(order):
        strides[d] = step
        step *= storage.shape[d]
    return tuple(strides)
