"""Pipeline stages: one step becomes one trace for each chunk of blocks, with what the chunks send each other.

    chunk 0                     chunk 1                     last chunk
    embeddings, blocks ...      recv x, blocks ...          recv x, blocks ..., norm, head, loss
                      send x                      send x
    recv dx, backward, update   recv dx ...                 backward, send dx, update

Blocks are dealt in runs, as even as can be. A chunk's trace is a micro-batch like any other: passes may follow.
Gradients are to be reduced within a chunk, so sharding comes after the split. A tied embedding lives in the first and
the last chunk, and its gradients are added between them once a step. What all blocks share (masks, rotations) each
chunk has for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from dnnmem.estimator.block_list import Path, blocks_of_ops, main_list
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import Life
from dnnmem.estimator.passes.pipeline_buffers import RECEIVE, SEND, with_buffers, with_stand_ins
from dnnmem.estimator.passes.pipeline_cuts import chunk_of_blocks
from dnnmem.estimator.passes.pipeline_tied import at_its_head, untie
from dnnmem.estimator.plan_pipeline import FOLDED, has_buffers
from dnnmem.estimator.repeat import note_of, repeat
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` unchanged: one trace is one chunk. `split` makes those of a pipeline."""
    del plan, cluster
    return trace


def split(trace: Trace, plan: Plan) -> list[Trace]:
    """The traces of `plan.mesh.pp * plan.pipeline.chunks` chunks, in the order of the model.

    Raises `UnsupportedError` where there are fewer blocks than chunks.
    """
    count = plan.mesh.pp * plan.pipeline.chunks
    if count == 1:
        return [trace]
    blocks = main_list(trace)
    if blocks is None or blocks.count < count:
        raise UnsupportedError(
            f"pp {plan.mesh.pp} * chunks {plan.pipeline.chunks} = {count} chunks, but the model has "
            f"{blocks.count if blocks else 0} equal blocks; each chunk needs one",
            hint="--set mesh.pp=1",
        )
    of_block = chunk_of_blocks(plan, count, blocks.count)
    inside = blocks_of_ops(trace.ops, blocks)
    owners = _owners(trace.ops, inside, of_block, count)
    trace, owners, tied, known = untie(trace, owners)
    stages = _Stages(trace=trace, owners=owners, count=count, known=known, tied=tied)
    _tell_apart(stages)
    if plan.pipeline.schedule in FOLDED:
        summed = {(s.module, s.name.split(".")[0]) for own in tied.values() for s in map(trace.storages.get, own) if s}
        stages.lent = {i for i, s in trace.storages.items() if s.kind is Kind.PARAM and (s.module, s.name) in summed}
    for i in trace.pinned:
        s = trace.storages[i]
        if s.kind is Kind.PARAM and not stages.used.get(i, set()) - {-1}:
            block = blocks.index(s.module)
            stages.used.setdefault(i, set()).add(0 if block is None else of_block[block])
    chunks = [_chunk(stages, c) for c in range(count)]
    if not stages.lent:
        shared = {(s.module, s.name.split(".")[0]) for own in tied.values() for s in map(trace.storages.get, own) if s}
        chunks[-1] = at_its_head(chunks[-1], shared)
    if not has_buffers(plan):
        return chunks
    before = _before_blocks(stages, inside)
    chunks[1:] = [with_stand_ins(chunk, before) for chunk in chunks[1:]]
    return [with_buffers(chunk, waits=plan.pipeline.schedule not in ("1f1b", "dapple")) for chunk in chunks]


def _before_blocks(stages: _Stages, inside: Sequence[int | None]) -> list[Storage]:
    """What the model's own code, not a module with parameters, hands to the first block."""
    trace = stages.trace
    first = next((k for k, block in enumerate(inside) if block is not None), 0)
    owned = {s.module for s in trace.storages.values() if s.kind is Kind.PARAM}
    for op in reversed(trace.ops[:first]):
        if op.phase is Phase.FORWARD and op.writes and _is_stream(trace, op):
            return [] if op.module in owned else [trace.storages[op.writes[0]]]
    return []


def split_repeated(trace: Trace, plan: Plan, layers: int) -> list[Trace]:
    """The chunks of a model of `layers` blocks, of which `trace` has a few.

    Chunks between the first and the last that have as many blocks do the same: they are one trace, with the module
    names of an early one. Raises what `split` and `repeat` raise.
    """
    count, blocks = plan.mesh.pp * plan.pipeline.chunks, main_list(trace)
    sizes = list(Counter(chunk_of_blocks(plan, count, layers)).values())
    few = [sizes[0], *dict.fromkeys(sizes[1:-1]), sizes[-1]]
    if blocks is None or len(sizes) < count or len(few) >= count or sum(few) < blocks.count or sizes[0] < blocks.others:
        return split(repeat(trace, layers), plan)
    cuts = ",".join(map(str, accumulate(few[:-1])))
    short = replace(plan, mesh=replace(plan.mesh, pp=len(few)), pipeline=replace(plan.pipeline, chunks=1, cuts=cuts))
    parts = split(repeat(trace, sum(few)), short)
    notes = (*trace.origin.notes, *([note_of(blocks, layers)] if layers != blocks.count else []))
    first, *middle, last = (replace(part, origin=replace(part.origin, notes=notes)) for part in parts)
    of_size = dict(zip(few[1:-1], middle, strict=True))
    return [first, *(of_size[size] for size in sizes[1:-1]), last]


@dataclass(slots=True, kw_only=True)
class _Stages:
    trace: Trace
    owners: list[int]
    """Chunk of each op; -1 in the update."""
    count: int
    known: Mapping[int, Life]
    tied: Mapping[int, Mapping[int, int]]
    """Chunk -> gradient of a weight it shares with an earlier chunk -> its own term of it."""
    used: dict[int, set[int]] = field(default_factory=dict)
    """Storage -> chunks that touch it."""
    order: dict[int, int] = field(default_factory=dict)
    """Storage -> its place among all."""
    bodies: list[list[Op]] = field(default_factory=list)
    """Ops of each chunk's forward and backward pass."""
    lent: set[int] = field(default_factory=set)
    """Tied weights of a rank that has both ends of the model: the first chunk updates them."""
    theirs: dict[tuple[Path, str], list[int]] = field(default_factory=dict)
    """Module and name of a parameter -> its gradients and states."""


def _tell_apart(stages: _Stages) -> None:
    """Whose each op and storage is."""
    trace = stages.trace
    stages.bodies = [[] for _ in range(stages.count)]
    for op, owner in zip(trace.ops, stages.owners, strict=True):
        if owner >= 0:
            stages.bodies[owner].append(op)
        for i in (*op.reads, *op.writes):
            stages.used.setdefault(i, set()).add(owner)
    for n, (i, s) in enumerate(trace.storages.items()):
        stages.order[i] = n
        if s.kind in {Kind.GRAD, Kind.OPTIMIZER}:
            stages.theirs.setdefault((s.module, s.name.split(".")[0]), []).append(i)


def _owners(ops: Sequence[Op], inside: Sequence[int | None], of_block: Sequence[int], count: int) -> list[int]:
    """Before the first block is the first chunk's, after the last the last one's; the backward pass the other way."""
    found = [-1] * len(ops)
    for phase, before, after in ((Phase.FORWARD, 0, count - 1), (Phase.BACKWARD, count - 1, 0)):
        mine = [k for k, op in enumerate(ops) if op.phase is phase]
        last = max((k for k in mine if inside[k] is not None), default=-1)
        at = before
        for k in mine:
            block = inside[k]
            at = of_block[block] if block is not None else after if k > last else at
            found[k] = at
    return found


def _chunk(stages: _Stages, c: int) -> Trace:
    """The trace of one chunk."""
    trace = stages.trace
    mine = {i for i, chunks in stages.used.items() if c in chunks}
    pinned = _pinned(stages, c, mine)
    live: set[int] = set(pinned)
    received: dict[Phase, list[int]] = {Phase.FORWARD: [], Phase.BACKWARD: []}
    ops: list[Op] = []
    for op in stages.bodies[c]:
        touched = [i for i in dict.fromkeys((*op.reads, *op.writes)) if trace.storages[i].nbytes]
        made = {e.storage for e in op.events if e.nbytes > 0}
        for i in touched:
            if i not in live and i not in made:
                received[op.phase].append(i)
                live.add(i)
        events = []
        for e in op.events:
            if e.storage >= 0 and e.nbytes < 0 and e.storage not in live and e.storage not in made:
                continue  # lives in another chunk only
            events.append(e)
            if e.storage >= 0:
                (live.add if e.nbytes > 0 else live.discard)(e.storage)
        ops.append(op if len(events) == len(op.events) else op_like(op, events=tuple(events)))
    ops = _with_messages(stages, c, ops, received)
    ops += _update(stages, c, mine | pinned)
    ops = _closed(trace, ops, pinned)
    storages = _storages(stages, ops, pinned, {i for ids in received.values() for i in ids})
    setup = tuple(Event(storages[i].nbytes, 0, i) for i in _in_order(trace, pinned) if storages[i].nbytes)
    return replace(trace, ops=tuple(ops), storages=storages, setup=setup, pinned=frozenset(pinned))


def _pinned(stages: _Stages, c: int, mine: set[int]) -> set[int]:
    """What of the pinned is this chunk's: what it touches, and states and gradients of its parameters."""
    storages, pinned = stages.trace.storages, stages.trace.pinned
    found = (mine | set(_of_params(stages, mine - stages.lent if c else mine))) & pinned
    for i in pinned - found:
        s = storages[i]
        unused = i not in stages.used and c == 0 and s.kind not in {Kind.OPTIMIZER, Kind.GRAD}
        if s.name == "workspace" or unused:
            found.add(i)
    return found


def _of_params(stages: _Stages, mine: set[int]) -> Iterator[int]:
    """Gradients and states of the parameters among `mine`."""
    for i in mine:
        s = stages.trace.storages[i]
        if s.kind is Kind.PARAM:
            yield from stages.theirs.get((s.module, s.name), ())


def _in_order(trace: Trace, pinned: set[int]) -> list[int]:
    order = dict.fromkeys(e.storage for e in trace.setup if e.nbytes > 0 and e.storage in pinned)
    order.update(dict.fromkeys(sorted(pinned)))
    return list(order)


def _with_messages(stages: _Stages, c: int, ops: list[Op], received: Mapping[Phase, list[int]]) -> list[Op]:
    """Receive before each pass, send after it."""
    storages = stages.trace.storages
    found: list[Op] = []
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        inside = [op for op in ops if op.phase is phase]
        if received[phase]:
            events = tuple(Event(storages[i].nbytes, 0, i) for i in received[phase])
            found.append(Op(name=RECEIVE, phase=phase, lane=Lane.COMM, writes=tuple(received[phase]), events=events))
        found += inside
        sent = _sent(stages, c, inside, phase)
        if sent:
            last = max(n for n, op in enumerate(found) if set(sent) & {*op.writes, *op.reads})
            late = tuple(e for op in found[last:] for e in op.events if e.storage in sent and e.nbytes < 0)
            if late:  # it is sent before it dies
                found[last] = op_like(found[last], events=tuple(e for e in found[last].events if e not in late))
            nbytes = sum(storages[i].nbytes for i in sent)
            found.append(Op(name=SEND, phase=phase, lane=Lane.COMM, reads=tuple(sent), moved_bytes=nbytes, events=late))
    return found


def _sent(stages: _Stages, c: int, inside: Sequence[Op], phase: Phase) -> list[int]:
    """What another chunk reads in this pass and this one has written; constants are not sent."""
    trace, found = stages.trace, []
    others = range(c + 1, stages.count) if phase is Phase.FORWARD else range(c)
    written: dict[int, list[Op]] = {}
    for op in inside:
        for i in op.writes:
            written.setdefault(i, []).append(op)
    for i in sorted(i for i in written if i not in trace.pinned and trace.storages[i].nbytes):
        read = any(trace.ops[k].phase is phase and stages.owners[k] in others for k in stages.known[i].uses)
        if read and any(_is_stream(trace, op) for op in written[i]):
            found.append(i)
    return found


def _is_stream(trace: Trace, op: Op) -> bool:
    """False for what is made without parameters before the blocks: masks, rotations."""
    if op.phase is Phase.BACKWARD or any(trace.storages[i].kind is Kind.PARAM for i in op.reads):
        return True
    return any(trace.storages[i].kind in {Kind.ACTIVATION, Kind.TEMP, Kind.COMM} for i in op.reads)


def _update(stages: _Stages, c: int, mine: set[int]) -> list[Op]:
    """The update of the chunk's own parameters; first, the sum of a tied gradient."""
    trace, alias = stages.trace, {} if stages.lent else stages.tied.get(c, {})
    storages, found = trace.storages, []
    tied = {alias.get(g, g) for others in stages.tied.values() for g in others if _has_term(stages, c, g)}
    if stages.lent:  # on one rank: nothing is sent
        mine, tied = mine - stages.lent if c else mine, set()
    for i in sorted(tied):
        nbytes = storages[i].nbytes
        found.append(Op(name=SEND, phase=Phase.STEP, lane=Lane.COMM, reads=(i,), writes=(i,), moved_bytes=nbytes))
    here = set(mine) | set(alias)
    owned = here | {i for i in _of_params(stages, mine) if storages[i].kind is Kind.GRAD}
    for k, op in enumerate(trace.ops):
        if op.phase is not Phase.STEP:
            continue
        made = [i for i in op.writes if stages.known[i].made == k]
        if made and len(op.reads) % len(made) == 0:
            owned.update(w for w, r in zip(made, op.reads, strict=False) if r in owned)
        else:
            owned.update(made)
        found += _narrowed(op, owned, alias, storages)
    if stages.lent and found:  # what this chunk adds to the first one's gradients is there until these go
        theirs = (i for i in stages.tied.get(c, {}).values() if storages[i].nbytes)
        frees = tuple(Event(-storages[i].nbytes, 0, i) for i in theirs)
        found[-1] = op_like(found[-1], events=(*found[-1].events, *frees))
    return found


def _has_term(stages: _Stages, c: int, grad: int) -> bool:
    """True for the chunk that keeps the gradient and for those that hold another term."""
    return c in stages.used.get(grad, set()) or grad in stages.tied.get(c, {})


def _narrowed(op: Op, owned: set[int], alias: Mapping[int, int], storages: Mapping[int, Storage]) -> list[Op]:
    """An op of the update with what is in `owned` only."""
    touched = {*op.reads, *op.writes, *(e.storage for e in op.events if e.storage >= 0)}
    if touched and not touched & owned:
        return []
    reads, writes = (tuple(i for i in ids if i in owned) for ids in (op.reads, op.writes))
    events = tuple(e for e in op.events if e.storage < 0 or e.storage in owned)
    old = sum(storages[i].nbytes for i in (*op.reads, *op.writes))
    new = sum(storages[i].nbytes for i in (*reads, *writes))
    moved = op.moved_bytes * new // old if old else op.moved_bytes
    return [renamed(op_like(op, reads=reads, writes=writes, events=events, moved_bytes=moved), alias)]


def _closed(trace: Trace, ops: list[Op], pinned: set[int]) -> list[Op]:
    """Free at its last use what another chunk would free; drop frees of what is not here."""
    alive: dict[int, int] = {}
    used: dict[int, int] = {}
    for k, op in enumerate(ops):
        used.update(dict.fromkeys((*op.reads, *op.writes), k))
        events = []
        for e in op.events:
            if e.storage >= 0 and e.nbytes < 0 and e.storage not in alive and e.storage not in pinned:
                continue
            events.append(e)
            if e.storage >= 0:
                if e.nbytes > 0:
                    alive[e.storage] = e.stream
                else:
                    alive.pop(e.storage, None)
        if len(events) != len(op.events):
            ops[k] = op_like(op, events=tuple(events))
    for i, stream in alive.items():
        if i not in pinned:
            at = used[i] if i in used else next(k for k, op in enumerate(ops) if any(e.storage == i for e in op.events))
            ops[at] = op_like(ops[at], events=(*ops[at].events, Event(-trace.storages[i].nbytes, stream, i)))
    return ops


def _storages(stages: _Stages, ops: Iterable[Op], pinned: set[int], received: set[int]) -> dict[int, Storage]:
    touched = set(pinned)
    for op in ops:
        touched.update(op.reads, op.writes, (e.storage for e in op.events if e.storage >= 0))
    storages = stages.trace.storages
    order = sorted(touched, key=stages.order.__getitem__)
    return {i: storage_like(storages[i], kind=Kind.INPUT) if i in received else storages[i] for i in order}
