"""A weight that two stages share: each has a gradient of its own, and the update begins with their sum.

recorded   term of the last stage ... term of the first stage, [their sum]      pipeline   term | term, sent and added
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from dnnmem.estimator.block_list import Path
from dnnmem.estimator.passes.draft import Life, lives
from dnnmem.estimator.passes.update import element_bytes
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like


def untie(trace: Trace, owners: list[int]) -> tuple[Trace, list[int], dict[int, dict[int, int]], Mapping[int, Life]]:
    """Leave each chunk its own term of a tied weight's gradient: for chunks, the gradient that stands for another.

    Also the lives in the new trace.
    """
    known = lives(trace.ops)
    ops, storages = list(trace.ops), dict(trace.storages)
    aliases: dict[int, dict[int, int]] = {}
    drop: set[int] = set()
    for k, op in enumerate(trace.ops):
        grad = _tied_sum(trace, known, op) if owners[k] >= 0 else None
        if grad is None:
            continue
        far = [i for i in op.reads if owners[known[i].made] != owners[k]]
        near = [i for i in op.reads if i not in far]
        if len(far) != 1 or len(near) != 1:
            continue
        drop.add(k)
        theirs, their = owners[known[far[0]].made], far[0]
        if their == grad:  # the sum was made in its place
            their = max(storages) + 1
        for at in known[far[0]].uses:
            if owners[at] == theirs:
                ops[at] = _as_gradient(ops[at], far[0], their, storages[grad].nbytes)
        storages[their] = storage_like(storages[grad], id=their)
        aliases.setdefault(theirs, {})[grad] = their
        for at in known[near[0]].uses:
            if at != k:
                ops[at] = _as_gradient(ops[at], near[0], grad, storages[grad].nbytes)
    if not drop:
        return trace, owners, aliases, known
    kept = [k for k in range(len(ops)) if k not in drop]
    trace = replace(trace, ops=tuple(ops[k] for k in kept), storages=storages)
    return trace, [owners[k] for k in kept], aliases, lives(trace.ops)


def at_its_head(chunk: Trace, tied: Collection[tuple[Path, str]]) -> Trace:
    """The last `chunk`, in which weights that are `tied` are its head's: they follow those that are used before them.

    In the model they are the embedding's, the first of all; the stage does not have it, so that memory, states and
    the update's lists have them in another place.
    """
    owners = [_owner(s) for s in chunk.storages.values() if s.kind is Kind.PARAM]
    used: dict[tuple[Path, str], int] = {}
    for k, op in enumerate(chunk.ops):
        for s in (chunk.storages[i] for i in op.reads if op.phase is Phase.FORWARD):
            if s.kind is Kind.PARAM:
                used.setdefault(_owner(s), k)
    order = [owner for owner in owners if owner not in tied]
    for owner in (it for it in owners if it in tied and it in used):
        earlier = (n for n, other in enumerate(order) if used.get(other, len(chunk.ops)) < used[owner])
        order.insert(max(earlier, default=-1) + 1, owner)
    old, new = ({owner: n for n, owner in enumerate(them)} for them in (owners, order))
    if old.keys() != new.keys() or old == new:
        return chunk
    ids = {i: new[_owner(s)] for i, s in chunk.storages.items() if _owner(s) in new and s.kind is not Kind.TEMP}
    kept = {i for i in ids if chunk.storages[i].kind in {Kind.PARAM, Kind.OPTIMIZER}}
    setup = [
        e
        for kind, run in groupby(chunk.setup, key=lambda e: e.storage in kept and chunk.storages[e.storage].kind)
        for e in (sorted(run, key=lambda e: ids[e.storage]) if kind else run)
    ]
    ops = [_listed(op, ids) if op.phase is Phase.STEP else op for op in chunk.ops]
    params = iter(sorted((i for i in ids if chunk.storages[i].kind is Kind.PARAM), key=ids.__getitem__))
    them = (next(params) if s.kind is Kind.PARAM else i for i, s in chunk.storages.items())
    storages = {i: chunk.storages[i] for i in them}
    return replace(chunk, ops=tuple(ops), setup=tuple(setup), storages=storages)


def _owner(storage: Storage) -> tuple[Path, str]:
    """Module and name of the parameter that a storage is, or is a gradient or a state of."""
    return storage.module, storage.name.split(".")[0]


def _listed(op: Op, place: dict[int, int]) -> Op:
    """`op`, of an update, with its lists by `place`, which what it makes is given too."""
    n = len(op.writes)
    lists = [op.reads[k : k + n] for k in range(0, len(op.reads), n)] if n else []
    keys = next(([place[i] for i in ids] for ids in (*lists, op.writes) if all(i in place for i in ids)), None)
    if n > 1 and keys is not None and all(len(ids) == n for ids in lists):
        place.update((i, key) for i, key in zip(op.writes, keys, strict=True) if i not in place)
        turn = sorted(range(n), key=keys.__getitem__)
        reads = tuple(ids[k] for ids in lists for k in turn)
        op = op_like(op, reads=reads, writes=tuple(op.writes[k] for k in turn))
    return op_like(op, events=_in_place(op.events, place))


def _in_place(events: Sequence[Event], place: Mapping[int, int]) -> tuple[Event, ...]:
    """`events` with each run of a list's by `place`, the last one first where it lets go of them."""
    found: list[Event] = []
    for (listed, frees), run in groupby(events, key=lambda e: (e.storage in place, e.nbytes < 0)):
        them = [*run]
        found += sorted(them, key=lambda e: place[e.storage], reverse=frees) if listed else them
    return tuple(found)


def _tied_sum(trace: Trace, known: Mapping[int, Life], op: Op) -> int | None:
    """The gradient that `op` makes as a sum of two terms like it, both of this pass; None for any other op."""
    if len(op.reads) != 2 or not op.name.startswith(("aten.add.", "aten.add_.")):
        return None
    grads = [i for i in op.writes if trace.storages[i].kind is Kind.GRAD]
    if len(grads) != 1:
        return None
    alike = [trace.storages[i] for i in (*op.reads, *grads)]
    elements = {s.nbytes // element_bytes(s.dtype) for s in alike}  # of a rank's part, and in whatever type
    return grads[0] if len(elements) == 1 and all(known[i].made >= 0 for i in op.reads) else None


def _as_gradient(op: Op, term: int, grad: int, nbytes: int) -> Op:
    """`op` with a gradient, in its own type, in the place of a term of it."""
    op = renamed(op, {term: grad})
    sized = (e._replace(nbytes=nbytes if e.nbytes > 0 else -nbytes) if e.storage == grad else e for e in op.events)
    return op_like(op, events=tuple(sized))
