"""Gradients that lie in DDP's buckets instead of beside them (`gradient_as_bucket_view`).

beside    backward .. g1 | g2 | copy in g1, g2 | all_reduce ..        copy out g1, g2 | update by g1, g2, free them
views     backward .. g1 | copy in g1, free it | g2 | copy in g2, free it | all_reduce ..        update by the bucket

A gradient is copied when autograd's node is done that makes it: after its other gradients, and the sums they enter.
Of several micro-batches only the last one sends: what the others left beside the buckets is added to, copied and gone,
and comes again with the next step's first (`batch.made_again`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dnnmem.estimator.passes.batch import MADE_AGAIN
from dnnmem.estimator.passes.draft import Draft, Life, made_storage
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase
from dnnmem.estimator.trace_copy import renamed


def viewed_sum(draft: Draft, known: Mapping[int, Life], k: int, mine: Sequence[int], axis: str) -> None:
    """Let gradients `mine`, the last of which op `k` completes, lie in a bucket that stays, and sum it."""
    op, sizes = draft.trace.ops[k], {g: draft.storages[g].nbytes for g in mine}
    flat = draft.add(made_storage(sum(sizes.values()), Kind.COMM, "bucket"))
    draft.pinned.add(flat)
    last = k
    for g in mine:
        last = max(last, _moved(draft, known[g], g, flat, axis))
    send = Op(
        name=f"dnnmem.all_reduce.{axis}", module=op.module, phase=op.phase, lane=Lane.COMM, reads=(flat,),
        writes=(flat,), moved_bytes=sum(sizes.values()),
    )  # fmt: skip
    draft.after.setdefault(last, []).append(send)


def _moved(draft: Draft, life: Life, grad: int, flat: int, axis: str) -> int:
    """Copy a gradient when it is there, which is returned; what comes later finds it in the bucket."""
    ops, nbytes = draft.trace.ops, draft.storages[grad].nbytes
    ready = max(k for k in life.uses if ops[k].phase is Phase.BACKWARD and grad in ops[k].writes)
    done = node_end(ops, ready)
    copy = Op(
        name=f"dnnmem.copy_in.{axis}", module=ops[ready].module, phase=Phase.BACKWARD, reads=(grad,), writes=(flat,),
        events=(Event(-nbytes, 0, grad),), moved_bytes=2 * nbytes,
    )  # fmt: skip
    draft.after.setdefault(done, []).append(copy)
    if life.freed >= 0:
        draft.unfree(life.freed, grad)
    later = (k for k in life.uses if k > done or ops[k].phase is Phase.STEP)
    _rename(draft, [k for k in later if ops[k].name != MADE_AGAIN], grad, flat)
    return done


def node_end(ops: Sequence[Op], k: int) -> int:
    """The last op of the node of op `k`: those that follow it, work on the same, or add up what these make."""
    given, made = set(ops[k].reads), set(ops[k].writes)
    while k + 1 < len(ops) and ops[k + 1].module == ops[k].module and ops[k + 1].phase is Phase.BACKWARD:
        op = ops[k + 1]
        adds = op.name.startswith("aten.add") and not made.isdisjoint(op.reads)
        if not adds and given.isdisjoint(op.reads):
            break
        made.update(op.writes)
        k += 1
    return k


def _rename(draft: Draft, uses: Sequence[int], grad: int, flat: int) -> None:
    for k in uses:
        draft.ops[k] = renamed(draft.ops[k], {grad: flat})
