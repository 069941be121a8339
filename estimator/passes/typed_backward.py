"""The backward pass in other types: a node reads what its forward op read, gradients are cast where that was cast.

forward    y -> y'   mm(y', w')              backward   g -> g'   mm(g', w') -> dy' -> dy   mm(g', y') -> dw' -> dw
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from dnnmem.estimator.passes.autocast_attention import backward as run_backward
from dnnmem.estimator.passes.autocast_lists import BATCH_NORMS, Policy, base, policy_of
from dnnmem.estimator.passes.typed_draft import FLOAT, TypedDraft
from dnnmem.estimator.passes.typed_forward import promoted
from dnnmem.estimator.trace import Event, Kind, Op, Phase
from dnnmem.estimator.trace_copy import op_like


def backward(d: TypedDraft, group: Sequence[int], f: int | None) -> None:
    """Ops of one node: they read what it read, and its gradients have the types of what they are gradients of."""
    first, last = group[0], group[-1]
    if f is not None:
        _cast_gradient(d, group, f)
        for k in group:
            new = {i: d.casts[f, i] for i in d.ops[k].reads if (f, i) in d.casts}
            new.update({i: d.between[f, i] for i in d.ops[k].reads if (f, i) in d.between})
            if new:
                d.read(k, new)
                d.ends.update({c: max(d.ends.get(c, -1), last) for c in new.values() if c in d.ends})
    back: list[tuple[int, int]] = []
    for k in group:
        back += _gradients(d, k, f)
    summed = _is_sum(d, last + 1, {i for k in group for i in d.ops[k].writes})
    for low, i in sorted(back, key=lambda pair: _is_owned(d, pair)):  # the input's first, summed at once
        place = last + 1 if summed and _is_owned(d, (low, i)) else last
        d.draft.after.setdefault(place, []).append(d.cast_op(d.ops[last], Phase.BACKWARD, low, i, gone=low))
        d.fresh.add(i)
    if f in d.kernels:
        out = d.ops[f].writes[0]
        run_backward(d.draft, first, d.kernels[f], (d.trace.storages[out], d.trace.storages[out]))


def _is_owned(d: TypedDraft, pair: tuple[int, int]) -> bool:
    """True for the gradient of a parameter."""
    storage = d.trace.storages[pair[1]]
    return storage.kind is Kind.GRAD or pair[1] in d.of_params


def _is_sum(d: TypedDraft, k: int, made: set[int]) -> bool:
    """True if op `k` adds one of these gradients to another."""
    if k >= len(d.ops) or d.ops[k].phase is not Phase.BACKWARD:
        return False
    return base(d.ops[k].name) in {"add", "add_"} and not made.isdisjoint(d.ops[k].reads)


def _cast_gradient(d: TypedDraft, group: Sequence[int], f: int) -> None:
    """What comes in has the type of the forward op's result."""
    out = next((i for i in d.ops[f].writes if i in d.draft.storages), None)
    if out is None or d.trace.storages[out].dtype != FLOAT:
        return
    wanted = d.lower if out in d.outputs else d.type(out)
    forward = {*d.ops[f].reads, *d.ops[f].writes}
    made = [
        i for i in d.ops[group[0]].reads
        if i not in forward and d.is_float(i) and d.known[i].made >= d.first_backward
    ]  # fmt: skip
    for i in made:
        if d.type(i) == wanted:
            continue
        new = d.copy(group[0], i, wanted, Kind.TEMP)
        d.ends[new] = group[-1]
        for k in group:
            d.read(k, {i: new})
        freed = d.known[i].freed
        if freed in group and not any(i in d.ops[k].writes for k in group):
            d.draft.unfree(freed, i)
            cast = d.draft.before[group[0]][-1]
            events = (*cast.events, Event(-d.size(i), 0, i))
            d.draft.before[group[0]][-1] = op_like(cast, events=events)


def _gradients(d: TypedDraft, k: int, f: int | None) -> list[tuple[int, int]]:
    """Give what op `k` makes its types; (lower or wider one that it makes, the recorded one to cast it to)."""
    op = d.ops[k]
    made = [i for i in op.writes if d.known[i].made == k and d.trace.storages[i].dtype in {FLOAT, "complex64"}]
    if not made:
        return []
    runs_in = promoted(d, op, [i for i in d.draft.ops[k].reads if d.is_float(i)])
    if f is not None and base(op.name) not in BATCH_NORMS:
        policy = d.policies.get(f, Policy.PROMOTE)
        runs_in = {Policy.LOWER: d.lower, Policy.FLOAT32: FLOAT}.get(policy, runs_in)
    back: list[tuple[int, int]] = []
    for i in made:
        source = _source_of(d, i, f, op) if f is not None else None
        made_in, wanted = runs_in, runs_in
        if source is not None:
            wanted = (
                d.lower if f is not None and d.casts.get((f, source), -1) == d.outputs.get(source) else d.type(source)
            )
            is_cast = f is not None and (f, source) in d.casts
            made_in = d.type(d.casts[f, source]) if is_cast and f is not None else wanted
            if not is_cast and policy_of(op.name) is Policy.LOWER:
                made_in = d.lower
        if d.trace.storages[i].dtype == "complex64":
            if wanted == d.lower:
                d.types[i] = wanted
                back.append((d.made_as(k, i, "complex64"), i))
            continue
        if source is not None and d.trace.storages[source].kind is Kind.PARAM:
            d.of_params.add(i)
        d.set(i, wanted)
        if made_in != wanted:
            back.append((d.made_as(k, i, made_in), i))
    return back


def _source_of(d: TypedDraft, i: int, f: int, op: Op) -> int | None:
    """The input of forward op `f` that `i` is the gradient of: a parameter by its name, others by their size."""
    made, reads = d.trace.storages[i], d.ops[f].reads
    floats = [r for r in reads if d.trace.storages[r].dtype == FLOAT]
    if made.kind is Kind.GRAD:
        for r in floats:
            s = d.trace.storages[r]
            if s.kind is Kind.PARAM and prod(s.shape) == prod(made.shape):
                return r
    read = {*op.reads}
    others = [r for r in floats if d.trace.storages[r].kind is not Kind.PARAM or made.kind is not Kind.GRAD]
    same = [r for r in others if d.trace.storages[r].nbytes == made.nbytes]
    if len(same) > 1 and policy_of(op.name) is Policy.LOWER:
        same = [r for r in same if r not in read] or same  # a product's gradient is made with the other factor
    if same:
        return same[0]
    whole = [r for r in others if d.trace.storages[r].kind is not Kind.PARAM and r not in read]
    return whole[0] if whole and policy_of(op.name) is Policy.LOWER else None
