"""Attention of a trace, shared by the ranks of a sequence: each fused op becomes pieces with messages between them.

all_gather, ring     copies | send k, v | attention | attention of what arrived | ...     see `context_tape`
ulysses              swap q, k, v | attention of some heads, all positions | swap back
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.context_groups import is_grouped, read_repeated, repeat, sum_groups
from dnnmem.estimator.passes.context_ring import Sizes, ring_backward, ring_forward
from dnnmem.estimator.passes.context_sizes import key_bytes
from dnnmem.estimator.passes.context_tape import Piece, Tape, swapped
from dnnmem.estimator.passes.draft import Draft, Life, made_storage
from dnnmem.estimator.passes.remat import PRODUCTS
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan

_SMALL = 64
"""Bytes up to which something is a random state."""


def share_attention(draft: Draft, known: Mapping[int, Life], plan: Plan) -> None:
    """Rewrite each attention of `draft`, whose storages and ops are a rank's already. Raises `UnsupportedError`."""
    seen: dict[int, tuple[int, ...]] = {}
    """By what an attention made, q, k, v and out as the kernel had them (Ulysses)."""
    for k, op in enumerate(draft.trace.ops):
        if op.phase is Phase.STEP or not is_attention(op.name):
            continue
        if "_backward" not in op.name:
            way = _heads_forward if plan.context.method == "ulysses" else _ring_forward
            seen[op.writes[0]] = way(draft, known, k, plan)
        else:
            at = next((n for n, i in enumerate(op.reads) if i in seen), 0)
            if not at:
                raise UnsupportedError(f"{op.name} of {'.'.join(op.module)} has no forward pass", hint="leave cp 1")
            own, out = op.reads[1:at], op.reads[at]
            if plan.context.method == "ulysses":
                _heads_backward(draft, known, k, _sizes(draft, op, own, out, plan), (own, out, seen[out]))
                continue
            sizes = _sizes(draft, op, own, out, plan)
            if seen[out]:
                _grouped_backward(draft, known, k, sizes, (own, seen[out]))
            else:
                _ring_backward(draft, known, k, sizes)


def _sizes(draft: Draft, op: Op, reads: Sequence[int], out: int, plan: Plan) -> Sizes:
    """Those of a rank: q, k, v are three storages, or parts of one."""
    storage = draft.storages[out]
    query, distinct = storage.nbytes, list(dict.fromkeys(reads))
    bytes_of = [draft.storages[i].nbytes for i in distinct]
    key = key_bytes(bytes_of, query)
    width = storage.shape[-1] if len(storage.shape) == 4 else 1
    wide = 1 if storage.dtype == "float32" else 2
    return Sizes(
        query=query, key=max(1, key), logsumexp=query * wide // max(1, width), wide=wide, ranks=plan.mesh.cp,
        gathers=plan.context.method == "all_gather", causal=op.masked_flops > 0,
    )  # fmt: skip


def _made(op: Op) -> list[Event]:
    """What the kernel allocates, and frees of that: the frees of what others made come after it."""
    made = {e.storage for e in op.events if e.nbytes > 0}
    return [e for e in op.events if e.nbytes > 0 or (e.storage < 0 and e.storage in made)]


def _ring_forward(draft: Draft, known: Mapping[int, Life], k: int, plan: Plan) -> tuple[int, ...]:
    op = draft.ops[k]
    out, *kept = op.writes
    kept.sort(key=lambda i: -draft.storages[i].nbytes)
    sizes = _sizes(draft, op, op.reads[:3], out, plan)
    repeated: tuple[int, ...] = ()
    if is_grouped(op, sizes.query, sizes.key):
        repeated = repeat(draft, k, sizes.query)
        _let_go(draft, known, k, [i for i in op.reads[1:3] if i != op.reads[0]])
        sizes = replace(sizes, key=sizes.query)
    tape, named = ring_forward(sizes, _made(op), out, kept)
    _insert(draft, k, tape, named)
    if sizes.causal:
        _reordered(draft, known, k, out)
    return repeated


def _reordered(draft: Draft, known: Mapping[int, Life], k: int, out: int) -> None:
    """All ranks but the last put halves together head by head: what the model makes of that is a copy, by position."""
    ops = draft.trace.ops
    later = [at for at in known[out].uses if at > k]
    others = [at for at in later if not is_attention(ops[at].name)]
    if not others or len(others) == len(later):
        return
    whole = draft.storages[out]
    copy = draft.add(whole)
    draft.after.setdefault(k, []).append(
        Op(
            name="aten.clone.default", module=ops[k].module, phase=ops[k].phase, reads=(out,), writes=(copy,),
            events=(Event(whole.nbytes, 0, copy),), moved_bytes=2 * whole.nbytes,
        )
    )  # fmt: skip
    for at in others:
        draft.ops[at] = renamed(draft.ops[at], {out: copy})
    draft.ops[known[out].freed] = op_like(
        draft.ops[known[out].freed],
        events=tuple(e for e in draft.ops[known[out].freed].events if e.storage not in (out, copy)),
    )
    draft.free(others[-1], copy)
    draft.free(next(at for at in reversed(later) if at not in others), out)


def _ring_backward(draft: Draft, known: Mapping[int, Life], k: int, sizes: Sizes) -> None:
    op = draft.ops[k]
    query, key, value = _gradients(draft, k)
    both = draft.add(made_storage(2 * sizes.key, Kind.TEMP, "", draft.storages[key]))
    tape, named = ring_backward(sizes, _made(op), (query, key, value))
    first = _by_position(draft, known, k, query, -1) if sizes.causal else query
    joined = [i for i in (key, value) if _by_position(draft, known, k, i, both) == i]
    ends = [next(at for at in known[i].uses if at > k) for i in (key, value) if i not in joined]
    for at in {at for i in joined for at in (*known[i].uses, known[i].freed)} - {k}:
        one = draft.ops[at]
        draft.ops[at] = op_like(
            one,
            reads=tuple(dict.fromkeys(both if i in joined else i for i in one.reads)),
            events=tuple(e for e in one.events if e.storage not in joined),
        )
    _insert(draft, k, tape, {first: named[query], both: named[key]})
    last = max((known[i].freed for i in joined), default=-1)
    if ends and max(ends) > last:
        copy = draft.before[max(ends)][-1]
        draft.before[max(ends)][-1] = op_like(copy, events=(*copy.events, Event(-2 * sizes.key, 0, both)))
    else:
        draft.free(last, both)


def _grouped_backward(
    draft: Draft, known: Mapping[int, Life], k: int, sizes: Sizes, kept: tuple[Sequence[int], tuple[int, ...]]
) -> None:
    """The same where keys and values were repeated for all heads; `kept`: those of the trace, and the repeated ones."""
    own, (keys, values) = kept
    query, key, value = _gradients(draft, k)
    wide = dict.fromkeys((key, value), sizes.query)
    kernel = [Event(wide.get(e.storage, e.nbytes), e.stream, e.storage) for e in _made(draft.ops[k])]
    read_repeated(draft, k, own, (keys, values))
    both = draft.add(made_storage(2 * sizes.query, Kind.TEMP, "", draft.storages[key]))
    tape, named = ring_backward(replace(sizes, key=sizes.query), kernel, (query, key, value))
    first = _by_position(draft, known, k, query, -1) if sizes.causal else query
    made = _by_position(draft, known, k, key, -1), _by_position(draft, known, k, value, -1)
    _insert(draft, k, tape, {first: named[query], both: named[key]})
    sum_groups(draft, k, both, made)


def _by_position(draft: Draft, known: Mapping[int, Life], k: int, i: int, source: int) -> int:
    """Gradients come head by head. Who needs them by position copies them: what is then copied, `i` if nothing is.

    With a `source` the copy is made of that, which stays; else of a storage of its own, which goes.
    """
    reader = next((at for at in known[i].uses if at > k), -1)
    name = draft.trace.ops[reader].name if reader >= 0 else ""
    if name not in PRODUCTS and not name.startswith("aten.cat."):
        return i
    part = draft.storages[i]
    first = source if source >= 0 else draft.add(part)
    made = Event(part.nbytes, 0, i)
    events = (made,) if source >= 0 else (made, Event(-part.nbytes, 0, first))
    op = draft.trace.ops[k]
    draft.before.setdefault(reader, []).append(
        Op(
            name="aten.clone.default", module=op.module, phase=op.phase, reads=(first,), writes=(i,), events=events,
            moved_bytes=2 * part.nbytes,
        )
    )  # fmt: skip
    return first


def _gradients(draft: Draft, k: int) -> list[int]:
    """Of q, k and v. Raises `UnsupportedError` where they are not three storages."""
    op = draft.ops[k]
    made = [i for i in dict.fromkeys(op.writes) if draft.storages[i].nbytes > _SMALL]
    if len(made) < 3:
        raise UnsupportedError(
            f"{op.name} of {'.'.join(op.module)} makes {len(made)} gradients, not one each of queries, keys and values",
            hint="--set mesh.cp=1",
        )
    return made[:3]


def _heads_forward(draft: Draft, known: Mapping[int, Life], k: int, plan: Plan) -> tuple[int, ...]:
    """The storages that the kernel saw and made: q, k, v and out of some heads."""
    op = draft.ops[k]
    out = op.writes[0]
    sizes = _sizes(draft, op, op.reads[:3], out, plan)
    tape = Tape()
    seen = [swapped(tape, nbytes) for nbytes in (sizes.query, sizes.key, sizes.key)]
    tape.piece("attention", takes=seen[-1])
    made = tape.kernel(_made(op))
    result = swapped(tape, sizes.query)
    kept = {i: x for i, x in made.items() if i >= 0 and i != out}
    new = _insert(draft, k, tape, {out: result, **kept}, saved=(*seen, made[out]))
    _let_go(draft, known, k, op.reads[:3])
    return tuple(new[x] for x in (*seen, made[out]))


def _let_go(draft: Draft, known: Mapping[int, Life], k: int, ids: Sequence[int]) -> None:
    """What of `ids` only attention kept is freed as soon as the program lets go of it."""
    ops = draft.trace.ops
    for i in dict.fromkeys(ids):
        later = [at for at in known[i].uses if at > k]
        if i in draft.pinned or not later or any(not is_attention(ops[at].name) for at in later):
            continue
        let = next((at for at in range(k, later[0]) if i in ops[at].releases), k)
        draft.unfree(known[i].freed, i)
        draft.free(let, i)


def _heads_backward(
    draft: Draft,
    known: Mapping[int, Life],
    k: int,
    sizes: Sizes,
    kept: tuple[tuple[int, ...], int, tuple[int, ...]],
) -> None:
    """`kept`: the storages of q, k and v in the trace, that of out, and those of all four as the kernel had them."""
    (own, out, seen), op, grads = kept, draft.ops[k], _gradients(draft, k)
    tape = Tape()
    gradient = swapped(tape, sizes.query)
    tape.piece("attention", takes=gradient)
    made = tape.kernel(_made(op))
    tape.drop(gradient)
    named = {}
    for i in reversed(grads):
        named[i] = swapped(tape, sizes.query if i == grads[0] else sizes.key)
        tape.drop(made[i])
    tape.drop(*(x for i, x in made.items() if i not in grads))
    before = [at for at in known[out].uses if at < k]
    if known[out].freed == k and before and draft.trace.ops[before[-1]].phase is Phase.BACKWARD:
        draft.unfree(k, out)
        draft.free(before[-1], out)
    others = tuple(i for i in op.reads if i not in own and i != out)
    draft.ops[k] = op_like(draft.ops[k], reads=(*others, *seen))
    _insert(draft, k, tape, named, frees=seen)


def _insert(
    draft: Draft, k: int, tape: Tape, named: Mapping[int, int], *, saved: Sequence[int] = (), frees: Iterable[int] = ()
) -> dict[int, int]:
    """The pieces in the place of op `k`; by a tape's storage the trace's. `frees` go after the last attention."""
    op = draft.ops[k]
    new = _storages(draft, op, tape, named, saved)
    count = sum(piece.kind == "attention" for piece in tape.pieces)
    made = {e.storage for e in op.events if e.nbytes > 0}
    rest = [e for e in op.events if e.storage not in made]
    rest += [Event(-draft.storages[i].nbytes, 0, i) for i in frees]
    last = max(n for n, piece in enumerate(tape.pieces) if piece.kind == "attention") if frees else len(tape.pieces) - 1
    found = []
    for n, piece in enumerate(tape.pieces):
        events = [Event(e.nbytes, 0, new.get(e.storage, e.storage)) for e in piece.events]
        events += rest if n == last else []
        found.append(_op_of(op, piece, new, tuple(events), count, reads=op.reads if n <= last else ()))
    draft.before.setdefault(k, []).extend(found[:-1])
    draft.ops[k] = op_like(found[-1], releases=op.releases)
    return new


def _storages(draft: Draft, op: Op, tape: Tape, named: Mapping[int, int], saved: Sequence[int]) -> dict[int, int]:
    """What lives longer than its piece is a storage of the trace."""
    new = {x: i for i, x in named.items()}
    for piece in tape.pieces:
        gone = {e.storage for e in piece.events if e.nbytes < 0}
        for nbytes, _, x in piece.events:
            if nbytes <= 0 or (x in gone and x != piece.gives):
                continue
            if x in new:
                draft.storages[new[x]] = storage_like(draft.storages[new[x]], nbytes=nbytes)
                continue
            kind = Kind.ACTIVATION if x in saved else Kind.COMM if x == piece.gives else Kind.TEMP
            like = draft.storages[op.writes[0]]
            new[x] = draft.add(storage_like(like, nbytes=nbytes, kind=kind, name="", saved=x in saved))
    return new


def _op_of(
    op: Op, piece: Piece, new: Mapping[int, int], events: tuple[Event, ...], count: int, *, reads: tuple[int, ...]
) -> Op:
    """One piece as an op of its own."""
    writes = tuple(dict.fromkeys(e.storage for e in events if e.nbytes > 0 and e.storage >= 0))
    takes = (new[piece.takes],) if piece.takes in new else ()
    if piece.kind == "attention":
        return op_like(
            op, reads=tuple(dict.fromkeys((*reads, *takes))), writes=writes, events=events, flops=op.flops // count,
            masked_flops=op.masked_flops // count, moved_bytes=op.moved_bytes // count, releases=(),
        )  # fmt: skip
    copies = piece.kind == "copy"
    return Op(
        name=f"dnnmem.{'copy_in' if copies else piece.kind}.cp", module=op.module, phase=op.phase,
        lane=Lane.COMPUTE if copies else Lane.COMM, reads=takes or (reads if copies else ()), writes=writes,
        events=events, moved_bytes=piece.nbytes,
    )  # fmt: skip
