"""Data parallelism with whole parameters as PyTorch does it: DistributedDataParallel, ZeroRedundancyOptimizer.

    set-up     parameters | two flat copies at a time, as rank 0's are sent | one bucket for all gradients
    step 2     that one goes, buckets of 25 MiB come, in the order in which gradients became ready
    each step  backward ... [copy in b0] all_reduce b0 ... [copy in b1] all_reduce b1 | copy out b0, b1 | update

Buckets stay beside the gradients, or gradients lie in them (`bucket_views`). With zero1 each parameter belongs to one
rank, whole, which updates it and sends it: the largest goes first, to whoever has least so far, so that ranks differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from dnnmem.estimator.hidden import Name, hidden_of
from dnnmem.estimator.passes.batch import made_again
from dnnmem.estimator.passes.bucket_views import node_end, viewed_sum
from dnnmem.estimator.passes.draft import Draft, lives, made_storage
from dnnmem.estimator.passes.optimizer_rules import RULES
from dnnmem.estimator.passes.update import element_bytes, gradients, scale_update
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Trace

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan

DEFAULT_BUCKET_MIB = 25
"""PyTorch's own bucket size (`_DEFAULT_BUCKET_CAP_MB` of torch/nn/parallel/distributed.py)."""
FIRST_BUCKET_BYTES = 1 << 20
"""Size of the first bucket beside it (`kDefaultFirstBucketBytes` of torch/csrc/distributed/c10d/reducer.hpp)."""
SENT_BYTES = 250 << 20
"""Most of what rank 0 sends at once, before the last tensor (`_sync_module_states` of the same file)."""


def replicate(trace: Trace, plan: Plan, rank: int = 0) -> Trace:
    """`trace` under ddp or zero1, that of one `rank` of the plan's."""
    draft = Draft(trace)
    buckets = buckets_of(trace, plan.sharding.bucket_mib)
    if not buckets:
        return trace
    last = max(k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD)
    axis = "dp_replicate" if plan.sharding.strategy == "ddp" else "dp"
    known = lives(trace.ops)
    for ready, mine in buckets:
        if plan.sharding.bucket_views:
            viewed_sum(draft, known, ready, mine, axis)
        else:
            _copied_sum(draft, node_end(trace.ops, ready), last, mine, axis)
    grads = [g for _, mine in buckets for g in mine]
    if plan.sharding.bucket_views and (kept := [g for g in grads if g in draft.pinned and known[g].made < 0]):
        made_again(draft, kept)
    _start(draft, grads)
    _send_buffers(draft)
    if plan.sharding.strategy == "zero1" and plan.mesh.dp_shard > 1:
        _own_part(draft, plan, rank // plan.mesh.tp % plan.mesh.dp_shard)
    return draft.finish()


def buckets_of(trace: Trace, bucket_mib: int) -> list[tuple[int, list[int]]]:
    """Gradients in buckets, each with the op that completes it."""
    ready: dict[int, int] = {}
    wanted = {g for mine in gradients(trace.storages).values() for g in mine}
    for k, op in enumerate(trace.ops):
        if op.phase is Phase.BACKWARD and op.lane is Lane.COMPUTE:
            ready.update((i, k) for i in op.writes if i in wanted)
    found: list[tuple[int, list[int]]] = []
    room = 0
    for i in sorted(ready, key=lambda i: (ready[i], i)):
        if room <= 0:
            found.append((ready[i], []))
            first = not found[1:] and bucket_mib == DEFAULT_BUCKET_MIB
            room = FIRST_BUCKET_BYTES if first else bucket_mib << 20
        found[-1][1].append(i)
        found[-1] = (ready[i], found[-1][1])
        room -= trace.storages[i].nbytes
    return found


def _copied_sum(draft: Draft, k: int, last: int, mine: Sequence[int], axis: str) -> None:
    """Copy gradients into a bucket that stays, sum it, copy it back when the backward pass is over."""
    nbytes = sum(draft.storages[g].nbytes for g in mine)
    flat = draft.add(made_storage(nbytes, Kind.COMM, "bucket"))
    draft.pinned.add(flat)
    op = draft.trace.ops[k]
    copy = Op(
        name=f"dnnmem.copy_in.{axis}", module=op.module, phase=op.phase, reads=tuple(mine), writes=(flat,),
        moved_bytes=2 * nbytes,
    )  # fmt: skip
    send = replace(
        copy, name=f"dnnmem.all_reduce.{axis}", lane=Lane.COMM, reads=(flat,), writes=(flat,), moved_bytes=nbytes
    )
    draft.after.setdefault(k, []).extend((copy, send))
    back = replace(copy, name=f"dnnmem.copy_out.{axis}", reads=(flat,), writes=tuple(mine))
    draft.before.setdefault(last + 1, []).append(back)


def _start(draft: Draft, grads: Sequence[int]) -> None:
    """What lives before the second step: copies of what rank 0 sends, and the one bucket for all gradients."""
    storages = draft.trace.storages
    flat = [draft.add(made_storage(n, Kind.COMM, "broadcast")) for n in _sent(draft, Kind.PARAM, Kind.BUFFER)]
    draft.start += _in_turn([(i, draft.storages[i].nbytes) for i in flat])
    first = draft.add(made_storage(sum(storages[g].nbytes for g in grads), Kind.COMM, "first bucket"))
    draft.start.append(Event(draft.storages[first].nbytes, 0, first))


def _send_buffers(draft: Draft) -> None:
    """Rank 0's buffers, such as running means, are sent before each forward pass."""
    mine = tuple(i for i, s in draft.trace.storages.items() if i in draft.pinned and s.kind is Kind.BUFFER and s.nbytes)
    sizes = _sent(draft, Kind.BUFFER)
    if mine and draft.trace.ops:
        send = Op(
            name="dnnmem.broadcast.dp_replicate", lane=Lane.COMM, reads=mine, writes=mine,
            events=tuple(_in_turn([(-1 - n, nbytes) for n, nbytes in enumerate(sizes)])),
            moved_bytes=sum(draft.trace.storages[i].nbytes for i in mine),
        )  # fmt: skip
        draft.before.setdefault(0, []).insert(0, send)


def _sent(draft: Draft, *kinds: Kind) -> list[int]:
    """Sizes of the flat copies in which storages of `kinds` are sent; what goes alone is not copied."""
    storages = [s for i, s in draft.trace.storages.items() if i in draft.pinned and s.kind in kinds and s.nbytes]
    flat: dict[str, list[list[int]]] = {}
    for s in sorted(storages, key=lambda s: s.kind is Kind.BUFFER):
        parts = flat.setdefault(s.dtype, [[]])
        if sum(parts[-1]) >= SENT_BYTES:
            parts.append([])
        parts[-1].append(s.nbytes)
    return [sum(part) for parts in flat.values() for part in parts if len(part) > 1]


def _in_turn(blocks: Sequence[tuple[int, int]]) -> list[Event]:
    """Events of blocks of which two are alive at a time."""
    events: list[Event] = []
    for n, (i, nbytes) in enumerate(blocks):
        events.append(Event(nbytes, 0, i))
        if n:
            events.append(Event(-blocks[n - 1][1], 0, blocks[n - 1][0]))
    return [*events, *(Event(-nbytes, 0, i) for i, nbytes in blocks[-1:])]


def _own_part(draft: Draft, plan: Plan, mine: int) -> None:
    """The update of what is the rank's (`mine`); then all are sent. Groups are shared out one after the other."""
    storages = draft.trace.storages
    trained = gradients(storages)
    sizes = [0] * plan.mesh.dp_shard
    rule = RULES.get(plan.optimizer.name or "")
    inside = hidden_of(draft.trace) if rule and rule.hidden_states else frozenset[Name]()
    others: set[tuple[tuple[str, ...], str]] = set()
    shares: dict[int, Fraction] = {}

    def elements(p: int) -> int:
        return storages[p].nbytes // element_bytes(storages[p].dtype)

    def group(p: int) -> int:
        return int((storages[p].module, storages[p].name) not in inside)

    for p in sorted(trained, key=lambda p: (group(p), -elements(p))):
        rank = sizes.index(min(sizes))
        sizes[rank] += elements(p)
        if rank != mine:
            others.add((storages[p].module, storages[p].name))
            shares.update(dict.fromkeys((p, *trained[p]), Fraction(0)))
    gone = [
        i for i, s in storages.items()
        if s.kind is Kind.OPTIMIZER and (s.module, s.name.split(".")[0]) in others
    ]  # fmt: skip
    shares.update(dict.fromkeys(gone, Fraction(0)))
    scale_update(draft, lives(draft.trace.ops), shares)
    draft.resize(dict.fromkeys(gone, 0))
    last = len(draft.trace.ops) - 1
    sent = Op(
        name="dnnmem.broadcast.dp_shard", module=draft.trace.ops[last].module, phase=draft.trace.ops[last].phase,
        lane=Lane.COMM, reads=tuple(trained), writes=tuple(trained),
        moved_bytes=sum(storages[p].nbytes for p in trained),
    )  # fmt: skip
    draft.after.setdefault(last, []).append(sent)
