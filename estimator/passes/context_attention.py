"""Attention of a trace, shared by the ranks of a sequence: each fused op becomes pieces with messages between them.

all_gather, ring     copies | send k, v | attention | attention of what arrived | ...     see `context_ring`
ulysses              swap q, k, v | attention of some heads, all positions | swap back    see `context_heads`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.context_groups import is_grouped, read_repeated, repeat, sum_groups
from dnnmem.estimator.passes.context_heads import heads_backward, heads_forward
from dnnmem.estimator.passes.context_insert import gradients, insert, let_go, made_by
from dnnmem.estimator.passes.context_ring import Sizes, ring_backward, ring_forward
from dnnmem.estimator.passes.context_sizes import gradients_of, key_bytes, lies_by_head
from dnnmem.estimator.passes.draft import Draft, Life, made_storage
from dnnmem.estimator.passes.remat import PRODUCTS
from dnnmem.estimator.trace import Event, Kind, Op, Phase
from dnnmem.estimator.trace_copy import op_like, renamed

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan


def share_attention(draft: Draft, known: Mapping[int, Life], plan: Plan, rank: int = 0) -> None:
    """Rewrite each attention of `draft`, whose storages and ops are a rank's already. Raises `UnsupportedError`.

    Args: `rank` is one of those that share a sequence.
    """
    seen: dict[int, tuple[int, ...]] = {}
    """By what an attention made, q, k, v and out as the kernel had them (Ulysses)."""
    sizes: dict[int, Sizes] = {}
    swaps, grads = plan.context.method == "ulysses", gradients_of(draft.trace)
    for k, op in enumerate(draft.trace.ops):
        if op.phase is Phase.STEP or not is_attention(op.name):
            continue
        if "_backward" not in op.name:
            out = op.writes[0]
            sizes[out] = _sizes(draft, known, k, grads.get(out, ()), plan=plan, rank=rank)
            seen[out] = (heads_forward if swaps else _ring_forward)(draft, known, k, sizes[out])
        else:
            at = next((n for n, i in enumerate(op.reads) if i in seen), 0)
            if not at:
                raise UnsupportedError(f"{op.name} of {'.'.join(op.module)} has no forward pass", hint="leave cp 1")
            own, out = op.reads[1:at], op.reads[at]
            if swaps:
                heads_backward(draft, known, k, sizes[out], (own, out, seen[out]))
            elif seen[out]:
                _grouped_backward(draft, known, k, sizes[out], (own, seen[out]))
            else:
                _ring_backward(draft, known, k, sizes[out])


def _sizes(draft: Draft, known: Mapping[int, Life], k: int, grads: Sequence[int], *, plan: Plan, rank: int) -> Sizes:
    """Those of a rank, by the gradients of q, k and v: they are three storages, or parts of one or two."""
    op = draft.ops[k]
    storage, own = draft.storages[op.writes[0]], op.reads[:3]
    if grads:
        query, key, value = (draft.storages[i].nbytes for i in grads)
    else:
        query = storage.nbytes
        key = value = key_bytes([draft.storages[i].nbytes for i in dict.fromkeys(own)], query)
    width = storage.shape[-1] if len(storage.shape) == 4 else 1
    wide = 1 if storage.dtype == "float32" else 2
    return Sizes(
        query=query, out=storage.nbytes, key=max(1, key), value=max(1, value),
        logsumexp=storage.nbytes * wide // max(1, width), wide=wide, ranks=plan.mesh.cp, rank=rank,
        gathers=plan.context.method == "all_gather", causal=op.masked_flops > 0,
        apart=tuple(lies_by_head(draft.trace, known, i) for i in own) if len(set(own)) == 3 else (False,) * 3,
        samples=storage.shape[0] if len(storage.shape) == 4 else 0,
    )  # fmt: skip


def _ring_forward(draft: Draft, known: Mapping[int, Life], k: int, sizes: Sizes) -> tuple[int, ...]:
    op = draft.ops[k]
    out, *kept = op.writes
    kept.sort(key=lambda i: -draft.storages[i].nbytes)
    repeated: tuple[int, ...] = ()
    if is_grouped(op, sizes.query, sizes.key):
        repeated = repeat(draft, k, sizes.query)
        let_go(draft, known, k, [i for i in op.reads[1:3] if i != op.reads[0]])
        sizes = _repeated(sizes)
    tape, named = ring_forward(sizes, made_by(op), out, kept)
    insert(draft, k, tape, named)
    if sizes.joins:
        _reordered(draft, known, k, out)
    return repeated


def _repeated(sizes: Sizes) -> Sizes:
    """With keys and values of all heads, which `repeat_interleave` lays head by head."""
    return replace(sizes, key=sizes.query, value=sizes.out, apart=(sizes.apart[0], True, True))


def _reordered(draft: Draft, known: Mapping[int, Life], k: int, out: int) -> None:
    """All ranks but the last put halves together head by head: what the model makes of that is a copy, by position."""
    ops = draft.trace.ops
    later = [at for at in known[out].uses if at > k]
    others = [at for at in later if not is_attention(ops[at].name)]
    if not others or len(others) == len(later) or ops[others[0]].name.startswith("aten.clone"):
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
    query, key, value = gradients(draft, k)
    both = draft.add(made_storage(sizes.pair, Kind.TEMP, "", draft.storages[key]))
    tape, named = ring_backward(sizes, made_by(op), (query, key, value))
    first = _by_position(draft, known, k, query, -1) if sizes.joins else query
    joined = [i for i in (key, value) if _by_position(draft, known, k, i, both) == i]
    ends = [next(at for at in known[i].uses if at > k) for i in (key, value) if i not in joined]
    for at in {at for i in joined for at in (*known[i].uses, known[i].freed)} - {k}:
        one = draft.ops[at]
        draft.ops[at] = op_like(
            one,
            reads=tuple(dict.fromkeys(both if i in joined else i for i in one.reads)),
            events=tuple(e for e in one.events if e.storage not in joined),
        )
    insert(draft, k, tape, {first: named[query], both: named[key]})
    last = max((known[i].freed for i in joined), default=-1)
    if ends and max(ends) > last:
        copy = draft.before[max(ends)][-1]
        draft.before[max(ends)][-1] = op_like(copy, events=(*copy.events, Event(-sizes.pair, 0, both)))
    else:
        draft.free(last, both)


def _grouped_backward(
    draft: Draft, known: Mapping[int, Life], k: int, sizes: Sizes, kept: tuple[Sequence[int], tuple[int, ...]]
) -> None:
    """The same where keys and values were repeated for all heads; `kept`: those of the trace, and the repeated ones."""
    own, (keys, values) = kept
    query, key, value = gradients(draft, k)
    sizes = _repeated(sizes)
    wide = {key: sizes.key, value: sizes.value}
    kernel = [Event(wide.get(e.storage, e.nbytes), e.stream, e.storage) for e in made_by(draft.ops[k])]
    read_repeated(draft, k, own, (keys, values))
    both = draft.add(made_storage(sizes.pair, Kind.TEMP, "", draft.storages[key]))
    tape, named = ring_backward(sizes, kernel, (query, key, value))
    first = _by_position(draft, known, k, query, -1) if sizes.joins else query
    made = _by_position(draft, known, k, key, -1), _by_position(draft, known, k, value, -1)
    insert(draft, k, tape, {first: named[query], both: named[key]})
    sum_groups(draft, k, both, made)


def _by_position(draft: Draft, known: Mapping[int, Life], k: int, i: int, source: int) -> int:
    """Gradients come head by head. Who needs them by position copies them: what is then copied, `i` if nothing is.

    With a `source` the copy is made of that, which stays; else of a storage of its own, which goes.
    """
    reader = next((at for at in known[i].uses if at > k), -1)
    name = draft.trace.ops[reader].name if reader >= 0 else ""
    part = draft.storages[i]
    joins = name.startswith("aten.cat.") and not _keeps_heads(draft, reader, i)
    if name not in PRODUCTS and not joins:
        return i
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


def _keeps_heads(draft: Draft, reader: int, i: int) -> bool:
    """Whether op `reader` puts gradients (B, H, T, ...) together as they are."""
    made = draft.trace.storages[draft.trace.ops[reader].writes[0]].shape
    shape = draft.trace.storages[i].shape
    return len(shape) == len(made) == 4 and shape[:3] == made[:3]
