"""Data parallelism with whole parameters: gradients are summed bucket by bucket while the backward pass goes on.

    ddp      backward ... [copy in b0] all_reduce b0 ... [copy in b1] all_reduce b1 ... | copy out b0, b1 | update
    zero1    reduce_scatter of each bucket; each rank updates its part of all, then parameters are gathered
    zero2    the same, and of the gradients only that part is kept

Buckets fill in the order in which gradients become ready, as PyTorch's DDP has it after its first step; they stay in
memory beside the gradients. The first one is small, so that sums begin early. Without overlap there is one sum of all
gradients, in place, after the backward pass (Megatron-LM before it overlapped).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from dnnmem.estimator.passes.draft import Draft, Life, lives, made_storage
from dnnmem.estimator.passes.update import gradients, in_type, scale_update, states
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan

FIRST_BUCKET_BYTES = 1 << 20
"""Size of the first bucket (`kDefaultFirstBucketBytes` of torch/csrc/distributed/c10d/reducer.hpp)."""


def reduce_gradients(trace: Trace, plan: Plan) -> Trace:
    """`trace` under ddp, zero1 or zero2."""
    draft, known = Draft(trace), lives(trace.ops)
    buckets = _buckets(trace, plan)
    if not buckets:
        return trace
    dtype = plan.precision.reduce or plan.precision.grad
    last = max(k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD)
    strategy, overlap = plan.sharding.strategy, plan.sharding.overlap
    if strategy == "zero2":
        _keep_parts(draft, [g for _, mine in buckets for g in mine], plan.mesh.dp_shard)
    for ready, mine in buckets:
        k = ready if overlap else last
        nbytes = sum(in_type(trace.storages[g], dtype).nbytes for g in mine)
        if strategy == "ddp" and overlap:
            _copied_sum(draft, k, last, mine, nbytes)
        elif strategy == "ddp":
            _comm(draft, k, "all_reduce.dp_replicate", nbytes, mine)
        else:
            _comm(draft, k, "reduce_scatter.dp_shard", nbytes, mine)
            if strategy == "zero2":
                _scatter(draft, k, mine)
            if plan.mesh.dp_replicate > 1:
                _comm(draft, k, "all_reduce.dp_replicate", nbytes // plan.mesh.dp_shard, mine)
    if strategy != "ddp":
        _split_update(draft, known, plan)
    return draft.finish()


def _buckets(trace: Trace, plan: Plan) -> list[tuple[int, list[int]]]:
    """Gradients in buckets, each with the op that completes it."""
    ready: dict[int, int] = {}
    wanted = {g for mine in gradients(trace.storages).values() for g in mine}
    for k, op in enumerate(trace.ops):
        if op.phase is Phase.BACKWARD and op.lane is Lane.COMPUTE:
            ready.update((i, k) for i in op.writes if i in wanted)
    order = sorted(ready, key=lambda i: (ready[i], i))
    if not plan.sharding.overlap:
        return [(max(ready.values()), order)] if order else []
    found: list[tuple[int, list[int]]] = []
    room = 0
    for i in order:
        if room <= 0:
            found.append((ready[i], []))
            room = plan.sharding.bucket_mib << 20 if len(found) > 1 else FIRST_BUCKET_BYTES
        found[-1][1].append(i)
        found[-1] = (ready[i], found[-1][1])
        room -= trace.storages[i].nbytes
    return found


def _comm(draft: Draft, k: int, name: str, nbytes: int, ids: Sequence[int]) -> None:
    """Put a collective over `ids` after op `k`."""
    op, ids = draft.trace.ops[k], tuple(ids)
    collective = Op(
        name=f"dnnmem.{name}",
        module=op.module,
        phase=op.phase,
        lane=Lane.COMM,
        moved_bytes=nbytes,
        reads=ids,
        writes=ids,
    )
    draft.after.setdefault(k, []).append(collective)


def _copied_sum(draft: Draft, k: int, last: int, mine: Sequence[int], nbytes: int) -> None:
    """Copy gradients into a bucket that stays, sum it, copy it back when the backward pass is over."""
    flat = draft.add(made_storage(nbytes, Kind.COMM, "bucket"))
    draft.pinned.add(flat)
    moved = nbytes + sum(draft.storages[g].nbytes for g in mine)
    op = draft.trace.ops[k]
    copy = Op(
        name="dnnmem.copy_in.dp_replicate", module=op.module, phase=op.phase, reads=tuple(mine), writes=(flat,),
        moved_bytes=moved,
    )  # fmt: skip
    draft.after.setdefault(k, []).append(copy)
    _comm(draft, k, "all_reduce.dp_replicate", nbytes, (flat,))
    back = replace(copy, name="dnnmem.copy_out.dp_replicate", reads=(flat,), writes=tuple(mine))
    draft.before.setdefault(last + 1, []).append(back)


def _keep_parts(draft: Draft, grads: Sequence[int], ranks: int) -> None:
    """Give gradients the size of a part; `_scatter` makes them from whole ones."""
    draft.resize({g: -(-draft.storages[g].nbytes // ranks) for g in grads})


def _scatter(draft: Draft, k: int, mine: Sequence[int]) -> None:
    """Let backward ops up to `k` make whole gradients, which the reduce-scatter turns into parts."""
    made: list[Event] = []
    freed: list[Event] = []
    new: dict[int, int] = {}
    for g in mine:
        nbytes = draft.trace.storages[g].nbytes
        new[g] = draft.add(draft.trace.storages[g])
        freed.append(Event(-nbytes, 0, new[g]))
        if g not in draft.pinned:
            made.append(Event(draft.storages[g].nbytes, 0, g))
    unmade = {g for g in mine if g in draft.pinned}
    for at in range(k + 1):
        op = draft.ops[at]
        if op.phase is not Phase.BACKWARD or not any(i in new for i in op.writes):
            continue
        events = []
        for e in op.events:
            i = new.get(e.storage)
            events.append(e if i is None or e.nbytes < 0 else Event(draft.storages[i].nbytes, e.stream, i))
        first = [i for i in op.writes if i in unmade]
        unmade.difference_update(first)
        pinned = [Event(draft.storages[new[i]].nbytes, 0, new[i]) for i in first if draft.storages[new[i]].nbytes]
        draft.ops[at] = op_like(
            op,
            reads=tuple(new.get(i, i) for i in op.reads),
            writes=tuple(new.get(i, i) for i in op.writes),
            events=(*pinned, *events),
        )
    comm = draft.after[k][-1]
    draft.after[k][-1] = replace(
        comm, reads=tuple(new.values()), events=(*(e for e in made if e.nbytes), *(e for e in freed if e.nbytes))
    )


def _split_update(draft: Draft, known: Mapping[int, Life], plan: Plan) -> None:
    """Each rank updates its part of everything, then parameters are gathered."""
    storages, ranks = draft.trace.storages, plan.mesh.dp_shard
    params = [i for i, s in storages.items() if s.kind is Kind.PARAM and i in draft.pinned]
    grads = [g for mine in gradients(storages).values() for g in mine]
    shares = dict.fromkeys([*params, *grads, *states(storages)], Fraction(1, ranks))
    scale_update(draft, known, shares)
    draft.resize({i: -(-storages[i].nbytes // ranks) for i in states(storages)})
    last = len(draft.trace.ops) - 1
    nbytes = sum(storages[i].nbytes for i in params)
    _comm(draft, last, "all_gather.dp_shard", nbytes, params)
