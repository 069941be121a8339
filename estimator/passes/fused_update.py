"""The optimizer's update as one kernel without temporaries: `AdamW(fused=True)` for a step recorded with lists of ops.

    recorded   mul  lerp  mul  addcmul  sqrt (+t)  div  addcdiv (-t)        fused   one op: p, g, m, v once each

What the update makes and drops is never in memory; what ranks send each other in between stays where it is.

>>> from dnnmem.estimator.trace import Event, Kind, Storage
>>> ids = {i: Storage(id=i, nbytes=800, kind=Kind.TEMP) for i in range(2)}
>>> sqrt = Op(name="aten._foreach_sqrt.default", phase=Phase.STEP, reads=(0,), writes=(1,), events=(Event(800, 0, 1),))
>>> add = Op(name="aten._foreach_add_.List", phase=Phase.STEP, reads=(0, 1), writes=(0,), events=(Event(-800, 0, 1),))
>>> found = fuse_update(Trace(ops=(sqrt, add), storages=ids, pinned=frozenset({0})))
>>> [(op.reads, op.writes, op.moved_bytes) for op in found.ops], found.peak_bytes()
([((0,), (0,), 1600)], 800)
"""

from __future__ import annotations

from dataclasses import replace

from dnnmem.estimator.trace import Lane, Op, Phase, Trace

NAME = "aten._fused_adamw_.default"
"""Name of the kernel."""


def fuse_update(trace: Trace) -> Trace:
    """`trace` with the compute ops of its update merged at the place of the last; unchanged without an update."""
    mine = [k for k, op in enumerate(trace.ops) if op.phase is Phase.STEP and op.lane is Lane.COMPUTE]
    if not mine:
        return trace
    inside = [trace.ops[k] for k in mine]
    made = {e.storage for op in inside for e in op.events if e.nbytes > 0}
    made &= {e.storage for op in inside for e in op.events if e.nbytes < 0}
    sent = {i for op in trace.ops if op.phase is Phase.STEP and op.lane is not Lane.COMPUTE for i in op.reads}
    gone = made - sent
    reads = dict.fromkeys(i for op in inside for i in op.reads if i not in gone)
    writes = dict.fromkeys(i for op in inside for i in op.writes if i not in gone)
    update = Op(
        name=NAME, module=inside[-1].module, phase=Phase.STEP, reads=tuple(reads), writes=tuple(writes),
        events=tuple(e for op in inside for e in op.events if e.storage not in gone),
        moved_bytes=sum(trace.storages[i].nbytes for ids in (reads, writes) for i in ids),
    )  # fmt: skip
    dropped = set(mine[:-1])
    ops = tuple(update if k == mine[-1] else op for k, op in enumerate(trace.ops) if k not in dropped)
    left = {i: s for i, s in trace.storages.items() if i not in gone}
    return replace(trace, ops=ops, storages=left)
