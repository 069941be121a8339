"""Context parallelism: ranks have a part of every sequence each, and do attention over all of it together.

    inputs, activations, logits   1 / cp        all ops but attention see positions one by one
    attention                     1 / cp        of the work; keys and values, or parts of sequences and heads, are sent
    parameters, their gradients   whole         gradients meet with those of the data axes: see `context_ranks`

What is of positions is found by following the inputs: what is made of them is split unless it is a matrix's gradient,
a sum over positions or a few scalars. After torch's `context_parallel` (ring attention: Liu et al. 2023; all ranks do
the same work since each has an early and a late part) and DeepSpeed-Ulysses (Jacobs et al. 2023).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.context_attention import share_attention
from dnnmem.estimator.passes.context_sizes import check_shares
from dnnmem.estimator.passes.draft import Draft, lives
from dnnmem.estimator.passes.optimizer import threads_of
from dnnmem.estimator.passes.remat import PRODUCTS
from dnnmem.estimator.reduction import Threads, buffers
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

_SMALL = 64
"""Bytes up to which a storage is a few scalars: never split."""
_BUFFER_EVENTS = 4
"""Of a sum by several blocks of threads: a buffer and semaphores come and go."""
_WHOLE = frozenset({Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER, Kind.BUFFER, Kind.INPUT})
"""Kinds of which each rank has all; the part of the inputs that it reads is small."""


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None, rank: int = 0) -> Trace:
    """One `rank`'s part of `trace` under `plan.mesh.cp` ranks; unchanged for one. Ranks differ in rings alone.

    Raises `UnsupportedError` for a step without sequences or fused attention, and for sizes that `cp` does not divide.
    """
    del cluster
    cp, method = plan.mesh.cp, plan.context.method
    if cp == 1:
        return trace
    length = check_shares(trace, cp, method)
    return _shared(trace, split_storages(trace, length, plan.mesh.tp), plan, length, rank // plan.mesh.tp % cp)


def split_storages(trace: Trace, length: int, tp: int = 1) -> set[int]:
    """Storages whose elements are of single positions of sequences of `length`, of which `tp` may have a part each."""
    storages = trace.storages
    split: set[int] = set()
    vectors: dict[tuple[str, ...], set[int]] = {}
    for s in storages.values():
        if s.kind is Kind.PARAM and len(s.shape) == 1:
            vectors.setdefault(s.module, set()).add(s.shape[0])
    for op in trace.ops:
        if op.phase is Phase.STEP:
            break
        if not any(i in split or _is_sequence(storages[i], length) for i in op.reads) and not _counts(op):
            continue
        if op.name.startswith("aten.embedding_dense_backward") or _is_matrix_gradient(op, split):
            continue
        attends = is_attention(op.name)
        for i in op.writes:
            s = storages[i]
            of_vector = op.phase is Phase.BACKWARD and math.prod(s.shape) in vectors.get(op.module, ())
            if s.kind not in _WHOLE and s.nbytes > _SMALL and (_has(s, length // tp) or attends) and not of_vector:
                split.add(i)
    return split


def _counts(op: Op) -> bool:
    """Positions themselves, or what split results are put into."""
    return not op.reads and op.name.startswith(("aten.arange", "aten.empty", "aten.zeros", "aten.full"))


def _is_sequence(s: Storage, length: int) -> bool:
    """An input, perhaps with the last token's successor, or a table of positions."""
    if s.kind is Kind.BUFFER:
        return any(size >= length for size in s.shape)
    return s.kind is Kind.INPUT and any(size in {length, length + 1} for size in s.shape[:2])


def _has(s: Storage, length: int) -> bool:
    return any(size and size % length == 0 for size in s.shape)


def _is_matrix_gradient(op: Op, split: set[int]) -> bool:
    """A product of two tensors of positions: summed over them."""
    if op.phase is not Phase.BACKWARD or op.name not in PRODUCTS:
        return False
    return sum(i in split for i in op.reads) >= 2


def _shared(trace: Trace, split: set[int], plan: Plan, length: int, rank: int) -> Trace:
    """The rank's ops and storages."""
    cp, draft = plan.mesh.cp, Draft(trace)
    known, threads = lives(trace.ops), threads_of(trace, None)
    for k, op in enumerate(trace.ops):
        if op.phase is not Phase.STEP:
            draft.ops[k] = _part_of(op, trace, split, cp)
            if op.name.startswith("aten.sum.") and split.isdisjoint(op.writes):
                draft.ops[k] = _summed(draft.ops[k], trace, split, cp, threads)
    parts = {i: _part(trace.storages[i], cp, length) for i in split}
    draft.resize({i: part.nbytes for i, part in parts.items()})
    draft.storages.update(parts)
    share_attention(draft, known, plan, rank)
    how = f"Context parallel over {cp} ranks ({plan.context.method})"
    return draft.finish(f"{how}: what is of single positions is found from the inputs.")


def _part_of(op: Op, trace: Trace, split: set[int], cp: int) -> Op:
    """Work of the rank: its part of the positions that the op reads or makes."""
    touched = (*op.reads, *op.writes)
    if split.isdisjoint(touched):
        return op
    sizes = {i: trace.storages[i].nbytes for i in touched}
    old = sum(sizes[i] for i in touched)
    new = sum(-(-sizes[i] // cp) if i in split else sizes[i] for i in touched)
    events = tuple(Event(e.nbytes // cp, e.stream, e.storage) if _is_split_temporary(e, cp) else e for e in op.events)
    return op_like(
        op, flops=op.flops // cp, masked_flops=op.masked_flops // cp, events=events,
        moved_bytes=op.moved_bytes * new // old if old else op.moved_bytes,
    )  # fmt: skip


def _summed(op: Op, trace: Trace, split: set[int], cp: int, threads: Threads | None) -> Op:
    """A sum over positions, such as a bias's gradient, with what blocks of threads share for so many rows."""
    made = [e for e in op.events if e.storage < 0]
    whole = next((trace.storages[i] for i in op.reads if i in split), None)
    columns = math.prod(trace.storages[op.writes[0]].shape)
    if threads is None or whole is None or len(made) != _BUFFER_EVENTS:
        return op
    rows = math.prod(whole.shape) // cp // max(1, columns)
    sizes = buffers(((rows, columns), (columns, 1)), (0,), gpu=threads)
    found = [Event(nbytes, 0, -1 - n) for n, nbytes in enumerate(sizes)]
    found += [Event(-nbytes, 0, i) for nbytes, _, i in reversed(found)]
    at = op.events.index(made[0])
    return op_like(op, events=(*op.events[:at], *found, *op.events[at + len(made) :]))


def _is_split_temporary(event: Event, cp: int) -> bool:
    return event.storage < 0 and event.nbytes % cp == 0 and abs(event.nbytes) > _SMALL


def _part(s: Storage, cp: int, length: int) -> Storage:
    """A rank's positions."""
    shape = list(s.shape)
    for d in [d for d, size in enumerate(shape) if size and size % length == 0][:1]:  # before what is as wide by chance
        shape[d] //= cp
    return storage_like(s, nbytes=-(-s.nbytes // cp), shape=tuple(shape))
