"""Copies of ops and storages with some fields changed: what `dataclasses.replace` does, ten times as fast.

A frozen dataclass sets each field through `object.__setattr__`. Here an object of a plain class with the same slots is
filled, and then becomes an `Op` or a `Storage`: their classes lay their fields out alike.

>>> op = op_like(Op(name="aten.mm.default", flops=8), reads=(1,))
>>> op.name, op.reads, op == Op(name="aten.mm.default", reads=(1,), flops=8)
('aten.mm.default', (1,), True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dnnmem.estimator.trace import Event, Kind, Op, Part, Phase, Storage

_Op: Any = type("_Op", (), {"__slots__": tuple(field.name for field in fields(Op))})
_Storage: Any = type("_Storage", (), {"__slots__": tuple(field.name for field in fields(Storage))})


def op_like(
    op: Op,
    *,
    name: str | None = None,
    module: tuple[str, ...] | None = None,
    phase: Phase | None = None,
    reads: tuple[int, ...] | None = None,
    writes: tuple[int, ...] | None = None,
    events: tuple[Event, ...] | None = None,
    releases: tuple[int, ...] | None = None,
    flops: int | None = None,
    masked_flops: int | None = None,
    moved_bytes: int | None = None,
) -> Op:
    """`op` with what is given here; None keeps a field."""
    new = _Op()
    new.name = op.name if name is None else name
    new.module = op.module if module is None else module
    new.phase = op.phase if phase is None else phase
    new.lane = op.lane
    new.reads = op.reads if reads is None else reads
    new.writes = op.writes if writes is None else writes
    new.events = op.events if events is None else events
    new.releases = op.releases if releases is None else releases
    new.flops = op.flops if flops is None else flops
    new.masked_flops = op.masked_flops if masked_flops is None else masked_flops
    new.moved_bytes = op.moved_bytes if moved_bytes is None else moved_bytes
    new.workspace_bytes = op.workspace_bytes
    new.seconds = op.seconds
    new.source = op.source
    new.__class__ = Op
    copy: Op = new
    return copy


def renamed(op: Op, new: Mapping[int, int]) -> Op:
    """`op` with other storages in the places of those in `new`; their sizes are the same."""
    get = new.get
    return op_like(
        op,
        reads=tuple([get(i, i) for i in op.reads]),
        writes=tuple([get(i, i) for i in op.writes]),
        events=tuple([Event(e[0], e[1], new[e[2]]) if e[2] in new else e for e in op.events]),
        releases=tuple([get(i, i) for i in op.releases]),
    )


def storage_like(
    storage: Storage,
    *,
    id: int | None = None,  # noqa: A002  (the field's name)
    nbytes: int | None = None,
    kind: Kind | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: str | None = None,
    module: tuple[str, ...] | None = None,
    name: str | None = None,
    saved: bool | None = None,
    parts: tuple[Part, ...] | None = None,
) -> Storage:
    """`storage` with what is given here; None keeps a field."""
    new = _Storage()
    new.id = storage.id if id is None else id
    new.nbytes = storage.nbytes if nbytes is None else nbytes
    new.kind = storage.kind if kind is None else kind
    new.shape = storage.shape if shape is None else shape
    new.dtype = storage.dtype if dtype is None else dtype
    new.module = storage.module if module is None else module
    new.name = storage.name if name is None else name
    new.channels_last = storage.channels_last
    new.saved = storage.saved if saved is None else saved
    new.parts = storage.parts if parts is None else parts
    new.__class__ = Storage
    copy: Storage = new
    return copy
