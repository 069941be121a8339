"""Ulysses: attention of some heads over all positions, between swaps of positions for heads and back.

forward    q, k, v swapped | kernel | out swapped back          what the kernel saw and made is kept
backward   out's gradient swapped | kernel | v's, k's, q's gradients swapped back

As `profilers/apply/context_heads.py` does it. What lies head by head is sent as it is where there is one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator.passes.context_insert import gradients, insert, let_go, made_by
from dnnmem.estimator.passes.context_ring import Sizes
from dnnmem.estimator.passes.context_tape import Tape, swapped
from dnnmem.estimator.passes.draft import Draft, Life
from dnnmem.estimator.trace import Phase
from dnnmem.estimator.trace_copy import op_like


def heads_forward(draft: Draft, known: Mapping[int, Life], k: int, sizes: Sizes) -> tuple[int, ...]:
    """The storages that the kernel saw and made: q, k, v and out of some heads."""
    op = draft.ops[k]
    out = op.writes[0]
    tape = Tape()
    seen = [
        swapped(tape, nbytes, copies=not (apart and sizes.samples == 1))
        for nbytes, apart in zip((sizes.query, sizes.key, sizes.value), sizes.apart, strict=True)
    ]
    tape.piece("attention", takes=seen[-1])
    made = tape.kernel(made_by(op))
    result = swapped(tape, sizes.out)
    kept = {i: x for i, x in made.items() if i >= 0 and i != out}
    new = insert(draft, k, tape, {_by_position(draft, known, k): result, **kept}, saved=(*seen, made[out]))
    let_go(draft, known, k, op.reads[:3])
    return tuple(new[x] for x in (*seen, made[out]))


def _by_position(draft: Draft, known: Mapping[int, Life], k: int) -> int:
    """What the attention `k` made, by position: that, or the copy that the model made, not needed now."""
    out = draft.ops[k].writes[0]
    reader = next((at for at in known[out].uses if at > k), -1)
    op = draft.ops[reader]
    if reader < 0 or not op.name.startswith("aten.clone") or op.phase is not Phase.FORWARD:
        return out
    [copy] = op.writes
    draft.skip(reader)
    draft.unfree(known[out].freed, out)
    return copy


def heads_backward(
    draft: Draft,
    known: Mapping[int, Life],
    k: int,
    sizes: Sizes,
    kept: tuple[tuple[int, ...], int, tuple[int, ...]],
) -> None:
    """`kept`: the storages of q, k and v in the trace, that of out, and those of all four as the kernel had them."""
    (own, out, seen), op, grads = kept, draft.ops[k], gradients(draft, k)
    tape = Tape()
    gradient = swapped(tape, sizes.out)
    tape.piece("attention", takes=gradient)
    made = tape.kernel(made_by(op))
    tape.drop(gradient)
    named = {}
    for i, nbytes in zip(reversed(grads), (sizes.value, sizes.key, sizes.query), strict=True):
        named[i] = swapped(tape, nbytes)
        tape.drop(made[i])
    tape.drop(*(x for i, x in made.items() if i not in grads))
    before = [at for at in known[out].uses if at < k]
    gone = any(e.storage == out for e in draft.ops[k].events)
    if gone and before and draft.trace.ops[before[-1]].phase is Phase.BACKWARD:
        draft.unfree(k, out)
        draft.free(before[-1], out)
    others = tuple(i for i in op.reads if i not in own and i != out)
    draft.ops[k] = op_like(draft.ops[k], reads=(*others, *seen))
    insert(draft, k, tape, named, frees=seen)
