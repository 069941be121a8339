"""Blocks whose parameters rest on the host: each is on the GPU while it runs, the next one on its way (L2L).

    forward    to device: [0]   to device: [1]  [0]  free [0]   to device: [2]  [1]  free [1]   [2]
    backward   to device: [1]  [2]'  free [2]   to device: [0]; to host: gradients of [2]  [1]'  free [1] and these ...

Pudipeddi et al. 2020 hold one layer on the GPU; here the next one is fetched meanwhile. With `resident` some blocks
stay (granular offloading, Lin et al. 2021). Gradients leave as they are made, and wait for no update on the GPU: the
optimizer works on the host (`offload_optimizer`), so that parameters do not come back by themselves. Parts of
parameters (FSDP2) are `offload_shards`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dnnmem.estimator.block_list import block_lists
from dnnmem.estimator.passes.draft import Draft, lives
from dnnmem.estimator.passes.fsdp_groups import LOSS
from dnnmem.estimator.passes.offload_shards import FETCH, SEND, rest_on_host
from dnnmem.estimator.passes.update import gradients
from dnnmem.estimator.streamed_blocks import aligned, check_streaming, streamed_blocks
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, renamed

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan


@dataclass(slots=True, eq=False)
class _Block:
    """A block: its ops, and what of it travels."""

    forward: list[int]
    backward: list[int]
    params: list[int]
    nbytes: int = 0


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with blocks' parameters on the host.

    Raises `UnsupportedError` for a model without blocks, and for what cannot go with it.
    """
    del cluster
    if not plan.offload.parameters:
        return trace
    check_streaming(plan)
    if plan.splits_parameters:
        return rest_on_host(trace, plan)
    blocks = _blocks(trace)
    chosen = set(streamed_blocks(plan.offload, len(blocks)))
    draft = Draft(trace)
    moving = [block for n, block in enumerate(blocks) if n in chosen and block.nbytes and block.forward]
    _compute_with_copies(draft, [block for block in blocks if block.forward], moving)
    _send_gradients(draft, [block for block in blocks if block.forward], moving)
    gone = {i for block in moving for i in block.params}
    _update_elsewhere(draft, gone)
    draft.pinned -= gone
    for i in gone:
        del draft.storages[i]
    return draft.finish()


def _blocks(trace: Trace) -> list[_Block]:
    """All blocks of the model; parameters that others read too stay."""
    found: list[_Block] = []
    owner_of: dict[int, int] = {}
    of_param: dict[int, int] = {}
    params = [trace.storages[i] for i in sorted(trace.pinned)]
    params = [s for s in params if s.kind is Kind.PARAM and s.nbytes]
    for some in block_lists(trace):
        base = len(found)
        owner_of.update({k: base + n for k, n in enumerate(some.numbers(trace.ops)) if n is not None})
        of_param.update({s.id: base + n for s in params if (n := some.index(s.module)) is not None})
        found += [_Block([], [], []) for _ in range(some.count)]
    for k, op in enumerate(trace.ops):
        if op.phase is Phase.STEP or op.lane is not Lane.COMPUTE:
            continue
        owner = owner_of.get(k)
        if owner is not None:
            (found[owner].forward if op.phase is Phase.FORWARD else found[owner].backward).append(k)
        for i in [i for i in op.reads if of_param.get(i, owner) != owner]:
            del of_param[i]
    for i, number in of_param.items():
        found[number].params.append(i)
        found[number].nbytes += aligned(trace.storages[i].nbytes)
    return found


def _compute_with_copies(draft: Draft, blocks: Sequence[_Block], moving: Sequence[_Block]) -> None:
    """Fetch the parameters of each block that moves, for either pass."""
    ops = draft.trace.ops
    begin = next(k for k, op in enumerate(ops) if op.phase is Phase.FORWARD and op.module != LOSS)
    last = max((k for k, op in enumerate(ops) if op.phase is Phase.BACKWARD), default=len(ops) - 1)
    for n, block in enumerate(moving):
        start = min(moving[n - 1].forward[0] if n else begin, block.forward[0])
        turns = n + 1 == len(moving)
        end = _next_begin(blocks, block, last)
        if turns or not block.backward:
            _fetch(draft, block, start, [*block.forward, *block.backward], end if turns else block.forward[-1])
            continue
        _fetch(draft, block, start, block.forward, block.forward[-1])
        behind = moving[n + 1].backward
        _fetch(draft, block, min(behind[0] if behind else len(ops), block.backward[0]), block.backward, end)


def _next_begin(blocks: Sequence[_Block], block: _Block, last: int, steps: int = 1) -> int:
    """The op before that with which the backward pass of the next block, or a later one, begins; else the `last`."""
    begins = sorted(other.backward[0] for other in blocks if other.backward)
    after = [k for k in begins if block.backward and k > block.backward[0]]
    return after[steps - 1] - 1 if len(after) >= steps else last


def _fetch(draft: Draft, block: _Block, start: int, users: Iterable[int], end: int) -> None:
    """Copy a block's parameters to the GPU before op `start`, for `users`, and free them after op `end`."""
    first = draft.trace.storages[block.params[0]]
    module = draft.trace.ops[block.forward[0]].module
    piece = Storage(id=0, nbytes=block.nbytes, kind=Kind.PARAM, dtype=first.dtype, module=first.module)
    new = draft.add(piece)
    op = Op(
        name=FETCH, module=module, phase=draft.ops[start].phase, lane=Lane.TO_DEVICE, writes=(new,),
        events=(Event(block.nbytes, 0, new),), moved_bytes=block.nbytes,
    )  # fmt: skip
    draft.before.setdefault(start, []).append(op)
    names = dict.fromkeys(block.params, new)
    for k in users:
        draft.ops[k] = _once(renamed(draft.ops[k], names))
    draft.free(end, new)


def _once(op: Op) -> Op:
    return op_like(op, reads=tuple(dict.fromkeys(op.reads)), writes=tuple(dict.fromkeys(op.writes)))


def _send_gradients(draft: Draft, blocks: Sequence[_Block], moving: Sequence[_Block]) -> None:
    """Copy gradients out after the op that writes them last, and free them while the block after the next runs."""
    ops, known = draft.trace.ops, lives(draft.trace.ops)
    of_param = gradients(draft.trace.storages)
    last = max((k for k, op in enumerate(ops) if op.phase is Phase.BACKWARD), default=len(ops) - 1)
    gone: set[int] = set()
    for block in moving:
        end = _next_begin(blocks, block, last, 2)
        for g in (g for p in block.params for g in of_param.get(p, ()) if g in known):
            writers = [k for k in known[g].uses if ops[k].phase is Phase.BACKWARD]
            gone.add(g)
            if writers:
                _send(draft, g, writers, end)
    _forget(draft, gone)


def _send(draft: Draft, g: int, writers: Sequence[int], end: int) -> None:
    """One gradient; where micro-batches add to it, what would be added goes instead."""
    storage, ops = draft.trace.storages[g], draft.trace.ops
    add = ops[writers[-1]] if g in draft.trace.pinned and ops[writers[-1]].name == "aten.add_.Tensor" else None
    fresh = next((i for i in add.reads if i != g), None) if add else None
    sent = draft.add(storage) if fresh is None else fresh
    out = Op(
        name=SEND, module=storage.module, phase=Phase.BACKWARD, lane=Lane.TO_HOST, reads=(sent,),
        moved_bytes=storage.nbytes,
    )  # fmt: skip
    if fresh is not None:
        others = tuple(e for e in draft.ops[writers[-1]].events if e.storage != fresh)
        draft.ops[writers[-1]] = op_like(out, events=others)
    else:
        for k in writers:
            op = renamed(draft.ops[k], {g: sent})
            draft.ops[k] = op_like(op, events=tuple(e for e in op.events if e.storage != sent or e.nbytes > 0))
        draft.after.setdefault(writers[-1], []).append(out)
    draft.free(max(end, writers[-1]), sent)


def _forget(draft: Draft, gone: set[int]) -> None:
    """Let nothing else use these gradients."""
    for k, op in enumerate(draft.ops):
        if gone.isdisjoint((*op.reads, *op.writes)) and not any(e.storage in gone for e in op.events):
            continue
        reads, writes = (tuple(i for i in ids if i not in gone) for ids in (op.reads, op.writes))
        moved = op.moved_bytes
        if op.name == "dnnmem.copy_to_host":
            moved -= sum(draft.storages[i].nbytes for i in op.reads if i in gone)
        events = tuple(e for e in op.events if e.storage not in gone)
        draft.ops[k] = op_like(op, reads=reads, writes=writes, events=events, moved_bytes=moved)
    draft.pinned -= gone
    for i in gone:
        draft.storages.pop(i, None)


def _update_elsewhere(draft: Draft, gone: set[int]) -> None:
    """What is updated on the host stays there."""
    for k, op in enumerate(draft.ops):
        if gone.isdisjoint((*op.reads, *op.writes)):
            continue
        moved = op.moved_bytes
        if op.name == "dnnmem.copy_to_device":
            moved -= sum(draft.storages[i].nbytes for i in op.writes if i in gone)
        reads, writes = (tuple(i for i in ids if i not in gone) for ids in (op.reads, op.writes))
        draft.ops[k] = replace(op, reads=reads, writes=writes, moved_bytes=moved)
