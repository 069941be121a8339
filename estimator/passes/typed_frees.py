"""What goes when, in a step of other types: casts, what autograd does not keep any more, what need not be made."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace

from dnnmem.estimator.passes.typed_draft import TypedDraft
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like


def free_casts(d: TypedDraft) -> None:
    """Each with the last op that needs it."""
    for cast, k in d.ends.items():
        d.draft.free(k, cast)


def free(d: TypedDraft) -> None:
    """What autograd does not keep any more goes when the program lets go of it."""
    held: dict[int, None] = {}
    for k, i in d.casts:
        if d.casts[k, i] in d.ends:
            held[i] = None
    for i in held:
        life, storage = d.known[i], d.trace.storages[i]
        if life.made < 0 or not storage.saved or life.freed < d.first_backward:
            continue
        left = [k for k in life.uses if k >= d.first_backward and i in (*d.draft.ops[k].reads, *d.draft.ops[k].writes)]
        new = max(left) if left else _death(d, i)
        if new < life.freed and not (left and d.ops[new].module == d.ops[life.freed].module):
            d.draft.unfree(life.freed, i)
            d.draft.free(new, i)
            if not left:
                d.draft.storages[i] = storage_like(d.draft.storages[i], kind=Kind.TEMP, saved=False)


def _death(d: TypedDraft, i: int) -> int:
    """The op with which the program lets go of `i`, where the trace tells.

    Else the one with which the module returns that `i` was last given to; for what stays in a module its last use.
    """
    if i in d.released:
        return d.released[i]
    life = d.known[i]
    last = max(k for k in life.uses if k < d.first_backward)
    home, user = d.ops[life.made].module, d.ops[last].module
    n = 0
    while n < min(len(home), len(user)) and home[n] == user[n]:
        n += 1
    if len(user) == n:
        return last
    inner = user[: n + 1]
    while last < d.last and d.ops[last + 1].module[: n + 1] == inner:
        last += 1
    return last


def move_bytes(d: TypedDraft) -> None:
    """Traffic follows the sizes of what ops touch."""
    old, new = d.trace.storages, d.draft.storages
    for k, op in enumerate(d.draft.ops):
        recorded = d.ops[k]
        if op.phase is Phase.STEP or not op.moved_bytes or (recorded is op and not any(i in d.types for i in op.reads)):
            continue
        before = sum(old[i].nbytes for i in (*recorded.reads, *recorded.writes))
        after = sum(new[i].nbytes for i in (*op.reads, *op.writes))
        if before and after != before:
            d.draft.ops[k] = op_like(op, moved_bytes=op.moved_bytes * after // before)


def joined(d: TypedDraft, trace: Trace) -> Trace:
    """Autograd adds into a gradient that a cast has made, where the recorded one was a view or somebody's."""
    for k, op in enumerate(d.ops):
        if op.phase is Phase.BACKWARD and op.name == "aten.add.Tensor" and len(op.writes) == 1 and op.reads:
            old, new = op.reads[0], op.writes[0]
            alike = d.type(old) == d.type(new) and d.size(old) == d.size(new)
            if old in d.fresh and d.known[old].freed == k and alike:
                d.same[new] = d.same.get(old, old)
                d.sums.add(new)
    return without(trace, d.same, d.sums) if d.same else trace


def without(trace: Trace, same: Mapping[int, int], sums: Container[int]) -> Trace:
    """`trace` without the storages in `same`, each of which another one stands for; what dies first of two stays.

    Ops that would make them go, or where they are sums, add into their first term.
    """
    ops: list[Op] = []
    for op in trace.ops:
        mine = {i for i in (*op.reads, *op.writes, *(e.storage for e in op.events)) if i in same}
        made = next(
            (i for i in op.writes if i in same and any(e.nbytes > 0 and e.storage == i for e in op.events)), None
        )
        if made is not None and made in sums:
            gone = {made, op.reads[0]}
            op = op_like(op, name="aten.add_.Tensor", writes=(same[made],), events=_left(op.events, gone))  # noqa: PLW2901
        elif made is not None:
            ops[-1] = op_like(ops[-1], events=(*ops[-1].events, *_left(op.events, {made})))
            continue
        elif mine:
            op = op_like(op, events=_left(op.events, {i for i in mine if i not in sums}))  # noqa: PLW2901
        ops.append(renamed(op, same) if mine else op)
    kept = {i: s for i, s in trace.storages.items() if i not in same}
    for i, other in same.items():
        old = trace.storages[i]
        if old.kind is Kind.GRAD:  # what stands for a gradient is one
            kept[other] = storage_like(kept[other], kind=old.kind, module=old.module, name=old.name, saved=False)
    return replace(trace, ops=tuple(ops), storages=kept)


def _left(events: Iterable[Event], gone: Container[int]) -> tuple[Event, ...]:
    return tuple(e for e in events if e.storage not in gone)
