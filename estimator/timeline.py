"""Bytes by kind over one step: what is alive at any moment, and the moment that needs most.

A predicted step, a recorded one and a CUDA snapshot all become this type, so that any two can be compared.

    event     start   +a x   +a tmp  -tmp   +a y   -x        `index` of the entries below
    index       0      1       2       3      4     5
    param      ----------------------------------------
    activation         xxxxxxxxxxxxxxxxxxxxxxxxx
    temp                       tttttt
    peak                       ^ the first largest sum

>>> from dnnmem.estimator.trace import Event, Op, Storage
>>> w = Storage(id=0, nbytes=8, kind=Kind.PARAM)
>>> op = Op(name="aten.sum", reads=(0,), events=(Event(4, 0, -1), Event(-4, 0, -1)))
>>> trace = Trace(ops=(op,), storages={0: w}, pinned=frozenset({0}))
>>> line = timeline(trace)
>>> line.allocated.tolist(), line.kinds[Kind.TEMP].tolist(), line.peak, alive_at(trace, line.peak)
([8, 12, 8], [0, 4, 0], 1, {0: 8, -1: 4})
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.trace import Kind, Trace

_KINDS = tuple(Kind)
_TEMP = _KINDS.index(Kind.TEMP)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """One device's memory after each allocator event. Arrays have one entry an event; entry 0 is the start."""

    op: npt.NDArray[np.int32]
    """Index of the op that owns the event; -1 for the start."""
    kinds: dict[Kind, npt.NDArray[np.int64]]
    """Bytes alive by kind; temporaries inside ops count as TEMP."""
    allocated: npt.NDArray[np.int64]
    """Sum over the kinds."""
    peak: int
    """Index of the first largest entry of `allocated`."""
    active: npt.NDArray[np.int64] | None = None
    """Allocated, or freed and still in use by another stream; None where nobody told."""
    reserved: npt.NDArray[np.int64] | None = None
    """Segments of the caching allocator; None without one."""


def by_module(trace: Trace, indices: Sequence[int]) -> dict[str, list[int]]:
    """Bytes that each module holds after the events `indices` (ascending) of `timeline(trace)`.

    By dotted path; a temporary belongs to the module whose op made it. Modules that hold nothing then are left out.

    >>> from dnnmem.estimator.trace import Event, Op, Storage
    >>> op = Op(name="aten.mm", module=("fc",), events=(Event(4, 0, -1), Event(-4, 0, -1)))
    >>> by_module(Trace(ops=(op,), storages={}), [0, 1, 2])
    {'fc': [0, 4, 0]}
    """
    owner = {i: ".".join(s.module) for i, s in trace.storages.items()}
    held: dict[str, int] = defaultdict(int)
    for i in trace.pinned:
        held[owner[i]] += trace.storages[i].nbytes
    found: dict[str, list[int]] = {}
    moments = iter(enumerate(indices))
    number, wanted = next(moments, (0, -1))
    for at, (op, event) in enumerate(chain([(-1, None)], trace.events())):
        if event is not None:
            whose = owner.get(event.storage)
            held[".".join(trace.ops[op].module) if whose is None else whose] += event.nbytes
        while at == wanted:
            for name, nbytes in held.items():
                if nbytes:
                    found.setdefault(name, [0] * len(indices))[number] = nbytes
            number, wanted = next(moments, (0, -1))
    return found


def timeline(trace: Trace) -> Timeline:
    """The memory curve of `trace`: every kind has its array, the pinned storages are entry 0. Needs no `check`."""
    counts = [len(op.events) for op in trace.ops]
    total = sum(counts)
    code = {i: _KINDS.index(s.kind) for i, s in trace.storages.items()}
    nbytes = np.fromiter((e.nbytes for op in trace.ops for e in op.events), np.int64, total)
    codes = np.fromiter((code.get(e.storage, _TEMP) for op in trace.ops for e in op.events), np.int8, total)
    start = dict.fromkeys(Kind, 0)
    for i in trace.pinned:
        start[trace.storages[i].kind] += trace.storages[i].nbytes
    kinds = {kind: _curve(start[kind], np.where(codes == k, nbytes, 0)) for k, kind in enumerate(_KINDS)}
    allocated = _curve(sum(start.values()), nbytes)
    op = np.concatenate((np.array([-1], np.int32), np.repeat(np.arange(len(counts), dtype=np.int32), counts)))
    return Timeline(op=op, kinds=kinds, allocated=allocated, peak=int(allocated.argmax()))


def alive_at(trace: Trace, index: int) -> dict[int, int]:
    """Storages alive after event `index` of `timeline(trace)`, with their bytes; temporaries have negative ids.

    In the order they were allocated, the pinned ones first. Raises `IndexError` for an index the timeline has not.
    """
    total = sum(len(op.events) for op in trace.ops)
    if not 0 <= index <= total:
        raise IndexError(f"the timeline has entries 0 to {total}, not {index}")
    live = {i: trace.storages[i].nbytes for i in sorted(trace.pinned)}
    for _, event in islice(trace.events(), index):
        if event.nbytes > 0:
            live[event.storage] = event.nbytes
        elif event.nbytes:
            live.pop(event.storage, None)
    return live


def _curve(start: int, changes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    curve: npt.NDArray[np.int64] = np.cumsum(np.concatenate((np.array([start], np.int64), changes)))
    return curve
