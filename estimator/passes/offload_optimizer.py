"""The optimizer on the host (ZeRO-Offload, Ren et al. 2021): its states rest there, and the update runs there.

    step    to_host    | gradients |          (they go with `zero_grad`, as ever)
            host                   | update |
            to_device                       | parameters |

Everything waits for everything: the update needs all gradients, the next forward pass all parameters. Without a copy
in between, what clips gradients before `step` finds them where they always are. With `disk` the states are in files
(ZeRO-Infinity, Rajbhandari et al. 2021), which are read before the update; writing them back holds up no parameters.

>>> from dnnmem.estimator.trace import Storage
>>> ids = {0: Storage(id=0, nbytes=8, kind=Kind.PARAM, name="w"), 1: Storage(id=1, nbytes=8, kind=Kind.GRAD, name="w"),
...        2: Storage(id=2, nbytes=16, kind=Kind.OPTIMIZER, name="w.exp_avg")}
>>> adam = Op(name="aten._fused_adamw_.default", phase=Phase.STEP, reads=(0, 1, 2), writes=(0, 2))
>>> found = offload(Trace(ops=(adam,), storages=ids, pinned=frozenset(ids)))
>>> [(op.name, op.lane.value, op.moved_bytes) for op in found.ops], found.pinned_bytes()
([('dnnmem.copy_to_host', 'to_host', 8), ('dnnmem.host_update', 'to_host', 56), \
('dnnmem.copy_to_device', 'to_device', 8)], 16)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import Draft, lives, made_storage
from dnnmem.estimator.passes.optimizer_recorded import find_update
from dnnmem.estimator.passes.optimizer_update import OPTIMIZER
from dnnmem.estimator.trace import Kind, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

HOST_UPDATE = "dnnmem.host_update"
"""The update: its `moved_bytes` are those of the host's memory."""
READ_STATES, WRITE_STATES = "dnnmem.read_states", "dnnmem.write_states"
"""Between the host's memory and its disk."""
DISK_BYTES_PER_S = 3e9
"""Of a node: one NVMe drive as DeepSpeed's users have it (deepspeedai/DeepSpeed, issue 998). Its GPUs share it."""
HOST_BYTES_PER_S = 2 * 8 * 25.6e9
"""Of a node: two sockets with eight channels of DDR4-3200 each, 25.6 GB/s a channel (JEDEC JESD79-4), as in a DGX A100.

Its GPUs share it. An update on the host streams parameters, gradients and states, and computes next to nothing.
"""


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with its optimizer on the host if `plan.offload.optimizer`; else the same object.

    Raises `UnsupportedError` for a step without an update.
    """
    del cluster
    return offload(trace, disk=plan.offload.disk) if plan.offload.optimizer else trace


def offload(trace: Trace, *, disk: bool = False) -> Trace:
    """`trace` whose update runs on the host, its states on `disk` if so."""
    span = find_update(trace)
    if not span.ops:
        raise UnsupportedError("the recorded step has no update of its parameters, so none can run on the host")
    draft, inside, storages = Draft(trace), set(span.ops), trace.storages
    known = lives(trace.ops)
    read = dict.fromkeys(i for k in span.ops for i in trace.ops[k].reads)
    grads = [i for i in read if storages[i].kind is Kind.GRAD]
    targets = [i for i in span.owners if i in read or any(i in trace.ops[k].writes for k in span.ops)]
    gone = {i for i, s in known.items() if i not in trace.pinned and s.uses and inside.issuperset(s.uses)}
    gone = (gone - set(grads)) | span.states
    moved = [sum(storages[i].nbytes for i in ids) for ids in (targets, grads, span.states)]
    there = draft.add(made_storage(0, Kind.TEMP, "on the host"))
    back = draft.add(made_storage(0, Kind.TEMP, "updated on the host"))
    late = tuple(e for k in span.ops for e in trace.ops[k].events if e.storage >= 0 and e.storage not in gone)
    new = [
        _op("dnnmem.copy_to_host", tuple(grads), (there,), moved[1]),
        _op(HOST_UPDATE, (there,), (back,), 2 * moved[0] + moved[1] + 2 * moved[2]),
        replace(_op("dnnmem.copy_to_device", (back,), tuple(targets), moved[0]), lane=Lane.TO_DEVICE, events=late),
    ]
    if disk:
        states = draft.add(made_storage(0, Kind.TEMP, "states"))
        new[1] = replace(new[1], reads=(there, states), writes=(back, states))
        new.insert(1, _op(READ_STATES, (), (states,), moved[2]))
        new.append(_op(WRITE_STATES, (states,), (), moved[2]))
    ops: list[Op] = []
    for k, op in enumerate(trace.ops):
        if k == span.ops[0]:
            ops += new
        if k not in inside:
            ops.append(op if gone.isdisjoint(e.storage for e in op.events) else _without(op, gone))
    draft.ops = ops
    draft.pinned -= gone
    for i in gone:
        del draft.storages[i]
    return draft.finish()


def _op(name: str, reads: tuple[int, ...], writes: tuple[int, ...], moved: int) -> Op:
    return Op(
        name=name, module=OPTIMIZER, phase=Phase.STEP, lane=Lane.TO_HOST, reads=reads, writes=writes, moved_bytes=moved
    )


def _without(op: Op, gone: set[int]) -> Op:
    return op_like(op, events=tuple(e for e in op.events if e.storage not in gone))
