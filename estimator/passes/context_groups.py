"""Keys and values that several heads share: torch's ring takes as many as queries, but for flash attention.

    forward    k, v (B, H_k, T, D) --repeat_interleave--> (B, H, T, D), which attention keeps; k and v may go
    backward   gradients of all heads, k's and v's in one storage --a sum each, v's first--> (B, H_k, T, D)

Flash attention's kernel takes fewer heads of keys as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.trace import Event, Kind, Op
from dnnmem.estimator.trace_copy import op_like, storage_like


def is_grouped(op: Op, query: int, key: int) -> bool:
    """Whether keys of `key` bytes are repeated for queries of `query` bytes."""
    return key < query and query % key == 0 and "_flash_" not in op.name


def repeat(draft: Draft, k: int, query: int) -> tuple[int, int]:
    """Let the attention `k` read keys and values of all heads, `query` bytes each; returns their storages."""
    op = draft.ops[k]
    like = storage_like(draft.storages[op.writes[0]], nbytes=query, kind=Kind.ACTIVATION, name="", saved=True)
    made = draft.add(like), draft.add(like)
    draft.before.setdefault(k, []).append(
        Op(
            name="aten.repeat_interleave.self_int", module=op.module, phase=op.phase, reads=tuple(op.reads[1:3]),
            writes=made, events=tuple(Event(query, 0, i) for i in made), moved_bytes=3 * query,
        )
    )  # fmt: skip
    draft.ops[k] = op_like(op, reads=(op.reads[0], *made, *op.reads[3:]))
    return made


def read_repeated(draft: Draft, k: int, own: Sequence[int], wide: tuple[int, int]) -> None:
    """Let the backward pass of attention, op `k`, read `wide` for its `own` k and v; they go with it."""
    op = draft.ops[k]
    others = tuple(i for i in op.reads if i not in own[1:] or i == own[0])
    gone = tuple(Event(-draft.storages[i].nbytes, 0, i) for i in wide)
    draft.ops[k] = op_like(op, reads=(*others, *wide), events=(*op.events, *gone))


def sum_groups(draft: Draft, k: int, both: int, made: tuple[int, int]) -> None:
    """After op `k`: gradients of all heads, `both`, become those of k and v, `made`."""
    op, sums = draft.trace.ops[k], []
    for i in reversed(made):
        nbytes = draft.storages[i].nbytes
        sums.append(
            Op(
                name="aten.sum.dim_IntList", module=op.module, phase=op.phase, reads=(both,), writes=(i,),
                events=(Event(nbytes, 0, i),), moved_bytes=nbytes + draft.storages[both].nbytes // 2,
            )
        )  # fmt: skip
    gone = Event(-draft.storages[both].nbytes, 0, both)
    draft.after.setdefault(k, []).extend([sums[0], op_like(sums[1], events=(*sums[1].events, gone))])
