"""What the program holds of the model's outputs is in float32: cast when the model returns, the last one first.

logits' stays if autograd keeps it; else it goes when all outputs are cast, and logits lives as it was recorded
"""

from __future__ import annotations

from dnnmem.estimator.passes.draft import made_storage
from dnnmem.estimator.passes.typed_draft import FLOAT, LOSS, TypedDraft
from dnnmem.estimator.passes.update import SIZES
from dnnmem.estimator.trace import Event, Kind, Phase
from dnnmem.estimator.trace_copy import op_like, storage_like


def cast_outputs(d: TypedDraft) -> None:
    """Cast what the loss reads, and what is held when the forward pass is over."""
    made = [i for i, life in d.known.items() if 0 <= life.made <= d.last and d.types.get(i) == d.lower]
    gone: list[int] = []
    for i in sorted(made, key=lambda i: -d.known[i].made):
        life, saved = d.known[i], d.trace.storages[i].saved
        if any(d.ops[k].module == LOSS for k in life.uses) or (life.freed >= d.first_backward and not saved):
            gone.append(_cast(d, i))
        elif saved and d.released.get(i, -1) > d.last:
            _copy(d, i)
    casts = d.draft.after.get(d.last, [])
    if casts and gone:
        frees = tuple(Event(-d.draft.storages[low].nbytes, 0, low) for low in gone if d.draft.storages[low].nbytes)
        casts[-1] = op_like(casts[-1], events=(*casts[-1].events, *frees))


def _cast(d: TypedDraft, i: int) -> int:
    """Storage `i` becomes the cast of another one, that the model makes and that is returned."""
    storage, uses = d.trace.storages[i], d.known[i].uses
    low = d.draft.add(storage_like(storage, dtype=d.lower, nbytes=d.nbytes(i), kind=Kind.TEMP))
    del d.types[i]
    d.outputs[i] = low
    for k in uses:
        if k > d.last:
            continue
        if i in d.ops[k].reads:
            d.casts[k, i] = d.casts.get((k, i), low)
        d.rename(k, {i: low})
        before = d.draft.before.get(k)
        if before:
            reads = ((op, tuple(low if r == i else r for r in op.reads)) for op in before)
            d.draft.before[k] = [op_like(op, reads=mine) for op, mine in reads]
    _append(d, low, i)
    return low


def _copy(d: TypedDraft, i: int) -> None:
    """Storage `i` stays for autograd, and the program holds a copy."""
    nbytes = d.nbytes(i) * SIZES[FLOAT] // SIZES[d.lower]
    new = d.draft.add(made_storage(nbytes, Kind.ACTIVATION, "", storage_like(d.trace.storages[i], dtype=FLOAT)))
    _append(d, i, new)
    d.ends[new] = d.released[i]


def _append(d: TypedDraft, old: int, new: int) -> None:
    like = op_like(d.ops[d.last], module=())
    d.draft.after.setdefault(d.last, []).append(d.cast_op(like, Phase.FORWARD, old, new))
