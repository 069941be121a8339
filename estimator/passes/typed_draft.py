"""A trace that gets other element types: what each storage is in now, and which casts stand between.

recorded   op 3 reads y (float32)            now   op 3 reads y' = cast(y), which goes after its last use
"""

from __future__ import annotations

from collections.abc import Iterable

from dnnmem.estimator.passes.autocast_lists import Policy
from dnnmem.estimator.passes.draft import Draft, lives
from dnnmem.estimator.passes.update import SIZES
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

LOSS = ("<loss>",)
"""Module of what runs outside of the model."""
FLOAT = "float32"


class TypedDraft:
    """A `Draft` and the types of its storages."""

    def __init__(self, trace: Trace, lower: str) -> None:
        """Start from `trace`, recorded in float32; `lower`: the type that it computes in instead."""
        self.trace, self.lower, self.ops = trace, lower, trace.ops
        self.draft, self.known = Draft(trace), lives(trace.ops)
        inside = [k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD and op.module != LOSS]
        self.last = inside[-1] if inside else -1
        self.first_backward = next((k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD), len(trace.ops))
        self.types: dict[int, str] = {}
        """Storage -> its type now, where that is not the recorded one."""
        self.casts: dict[tuple[int, int], int] = {}
        """(forward op, storage it was recorded to read) -> the cast that it reads."""
        self.cached: dict[int, int] = {}
        """Parameter -> its cast."""
        self.ends: dict[int, int] = {}
        """Cast -> op after which it is gone."""
        self.between: dict[tuple[int, int], int] = {}
        """(forward op, its recorded result) -> the wider one that it makes."""
        self.released = {i: k for k, op in enumerate(trace.ops) for i in op.releases}
        """Storage that autograd keeps -> the op with which the program lets go of it."""
        self.policies: dict[int, Policy] = {}
        """Of forward ops."""
        self.statistics: set[int] = set()
        """What norms and attention make beside their results: in float32."""
        self.of_params: set[int] = set()
        """Gradients of parameters."""
        self.fresh: set[int] = set()
        """Gradients that a cast makes: nobody else holds them."""
        self.same: dict[int, int] = {}
        """Storage that is not made -> the one that stands for it."""
        self.sums: set[int] = set()
        """Those of them that are sums: added into their first term."""
        self.sizes: dict[int, int] = {}
        """Other sizes of what has no other type."""
        self.kernels: dict[int, str] = {}
        """Forward op of attention -> the kernel that runs it."""
        self.outputs: dict[int, int] = {}
        """Output of the model, in float32 -> what it was cast from."""

    def type(self, i: int) -> str:
        """What storage `i` is in now."""
        return self.types.get(i) or self.draft.storages[i].dtype

    def is_float(self, i: int) -> bool:
        """True for numbers that casts are about."""
        return self.type(i) in {FLOAT, self.lower} and i in self.draft.storages

    def nbytes(self, i: int) -> int:
        """Bytes of recorded storage `i` in its type now."""
        recorded = self.trace.storages[i]
        return recorded.nbytes * SIZES[self.types[i]] // (4 if recorded.dtype == "complex64" else SIZES[recorded.dtype])

    def set(self, i: int, dtype: str) -> None:
        """Give what an op makes another type."""
        if self.trace.storages[i].dtype == FLOAT and dtype != FLOAT and self.known[i].made >= 0:
            self.types[i] = dtype

    def copy(self, k: int, i: int, dtype: str, kind: Kind, *, place: int | None = None) -> int:
        """A copy of storage `i` in another type, made just before op `k`; placed as op `place`."""
        storage, like = self.draft.storages[i], self.ops[k if place is None else place]
        nbytes = self.size(i) * SIZES[dtype] // SIZES[self.type(i)]
        new = self.draft.add(
            storage_like(
                storage, kind=kind, dtype=dtype, nbytes=nbytes, name="", module=like.module,
                saved=kind is Kind.ACTIVATION,
            )
        )  # fmt: skip
        self.draft.before.setdefault(k, []).append(self.cast_op(like, self.ops[k].phase, i, new))
        return new

    def cast_op(self, like: Op, phase: Phase, old: int, new: int, gone: int | None = None) -> Op:
        """The op that makes `new` of `old`, and frees `gone`."""
        size, made = self.size(old), self.size(new)
        events = [Event(made, 0, new)] if made else []
        if gone is not None and size:
            events.append(Event(-size, 0, gone))
        return Op(
            name="aten._to_copy.default", module=like.module, phase=phase, reads=(old,), writes=(new,),
            events=tuple(events), moved_bytes=size + made, source=like.source,
        )  # fmt: skip

    def size(self, i: int) -> int:
        """Bytes of any storage now."""
        return self.nbytes(i) if i in self.types and i in self.trace.storages else self.draft.storages[i].nbytes

    def read(self, k: int, new: dict[int, int]) -> None:
        """Let op `k` read other storages."""
        op = self.draft.ops[k]
        self.draft.ops[k] = op_like(op, reads=tuple(dict.fromkeys(new.get(i, i) for i in op.reads)))

    def rename(self, k: int, new: dict[int, int]) -> None:
        """Let op `k` read, make and free other storages."""
        op = self.draft.ops[k]
        size = self.draft.storages
        events = tuple(
            Event(size[new[e.storage]].nbytes * (1 if e.nbytes > 0 else -1), 0, new[e.storage])
            if e.storage in new else e
            for e in op.events
        )  # fmt: skip
        reads, writes = (tuple(new.get(i, i) for i in ids) for ids in (op.reads, op.writes))
        self.draft.ops[k] = op_like(op, reads=reads, writes=writes, events=events)

    def made_as(self, k: int, i: int, dtype: str) -> int:
        """Let op `k` make another storage in the place of `i`, in type `dtype`; returns it."""
        storage = self.trace.storages[i]
        nbytes = storage.nbytes if dtype == storage.dtype else storage.nbytes * SIZES[dtype] // SIZES[FLOAT]
        low = self.draft.add(storage_like(storage, dtype=dtype, nbytes=nbytes, kind=Kind.TEMP, name="", saved=False))
        op = self.draft.ops[k]
        events = tuple(Event(nbytes, e.stream, low) if e.storage == i and e.nbytes > 0 else e for e in op.events)
        writes = tuple(low if w == i else w for w in op.writes)
        self.draft.ops[k] = op_like(op, writes=writes, events=events)
        return low

    def widest(self, floats: Iterable[int]) -> str:
        """The wider of the types of these storages."""
        return FLOAT if any(self.type(i) == FLOAT for i in floats) else self.lower
