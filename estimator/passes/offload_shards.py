"""FSDP2 with its parameters on the host (`CPUOffloadPolicy`): a rank's parts rest there, and are updated there.

    gather    to device: each part by itself (cast) | all_gather of all | parts go
    scatter   reduce_scatter | to host: the part of the gradients, which goes

After torch/distributed/fsdp/_fully_shard: parts come one by one, since no list of them is copied at once from the host;
a gradient's memory is given back without a wait, as what its stream does next comes after the copy. What replicas have
summed stays until all have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dnnmem.estimator.passes.draft import Draft, made_storage
from dnnmem.estimator.passes.fsdp_parts import GATHER_STREAM, SCATTER_STREAM
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan

FETCH, SEND = "dnnmem.copy_to_device.parameters", "dnnmem.copy_to_host.gradients"
"""Names of the copies."""
_GATHER, _SCATTER, _SUM = "dnnmem.all_gather.", "dnnmem.reduce_scatter.", "dnnmem.all_reduce.dp_replicate"


def rest_on_host(trace: Trace, plan: Plan) -> Trace:
    """`trace`, a rank's under FSDP2 with its update on the host, with parameters and gradients there too."""
    draft = Draft(trace)
    params = {i for i in trace.pinned if trace.storages[i].kind is Kind.PARAM and trace.storages[i].nbytes}
    _fetch(draft, params)
    grads = _send(draft, last=_last_backward(trace) if plan.mesh.dp_replicate > 1 else -1)
    for k, op in enumerate(draft.ops):  # what the update fetched and sent is there
        if op.name in {"dnnmem.copy_to_host", "dnnmem.copy_to_device"}:
            there = sum(trace.storages[i].nbytes for i in {*op.reads, *op.writes} & (params | grads))
            draft.ops[k] = op_like(op, moved_bytes=op.moved_bytes - there)
    for i in params | grads:
        draft.storages[i] = storage_like(draft.storages[i], nbytes=0)
    for k, op in enumerate(draft.ops):
        if any(e.storage in grads for e in op.events):
            draft.ops[k] = op_like(op, events=tuple(e for e in op.events if e.storage not in grads))
    return draft.finish()


def _last_backward(trace: Trace) -> int:
    return max((k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD), default=-1)


def _fetch(draft: Draft, params: set[int]) -> None:
    """Let parts come before each gather, and take memory where its buffer does."""
    trace, waiting = draft.trace, dict[int, tuple[int, ...]]()
    for k, op in enumerate(trace.ops):
        group: tuple[int, ...] = ()
        if op.name.startswith(_GATHER) and params.issuperset(op.reads):
            there = draft.add(made_storage(0, Kind.COMM, "fetched"))
            fetch = Op(
                name=FETCH, module=op.module, phase=op.phase, lane=Lane.TO_DEVICE, reads=op.reads, writes=(there,),
                moved_bytes=sum(trace.storages[i].nbytes for i in op.reads),
            )  # fmt: skip
            draft.before.setdefault(k, []).append(fetch)
            draft.ops[k] = op_like(op, reads=(there,))
            group = waiting[op.writes[0]] = op.reads
        elif op.reads and op.reads[0] in waiting:
            group = waiting.pop(op.reads[0])
        if group and any(_is_buffer(trace, e) for e in op.events):
            events = _parts(trace, group, op.events)
            draft.ops[k] = op_like(draft.ops[k], events=events)
            waiting = {token: others for token, others in waiting.items() if others is not group}


def _is_buffer(trace: Trace, e: Event) -> bool:
    return e.nbytes > 0 and e.storage >= 0 and e.stream == GATHER_STREAM and trace.storages[e.storage].kind is Kind.COMM


def _parts(trace: Trace, group: Sequence[int], events: Sequence[Event]) -> tuple[Event, ...]:
    """The events of a gather's buffer, with each part by itself in the place of one cast of all."""
    cast = next((e for e in events if e.storage < 0 < e.nbytes and e.stream == GATHER_STREAM), None)
    sizes = [trace.storages[i].nbytes for i in group]
    made: list[Event] = []
    gone: list[Event] = []
    for n, size in enumerate(sizes):
        first, second = -1 - 2 * n, -2 - 2 * n
        made.append(Event(size, GATHER_STREAM, first))
        if cast is not None:
            small = size * cast.nbytes // sum(sizes)
            made += [Event(small, GATHER_STREAM, second), Event(-size, GATHER_STREAM, first)]
            gone.append(Event(-small, GATHER_STREAM, second))
        else:
            gone.append(Event(-size, GATHER_STREAM, first))
    found: list[Event] = []
    for e in events:
        if _is_buffer(trace, e):
            found += [*made, e, *reversed(gone)]
        elif cast is None or e.storage != cast.storage:
            found.append(e)
    return tuple(found)


def _send(draft: Draft, last: int) -> set[int]:
    """Let gradients leave when they are summed, which are returned; their memory goes at once, or after op `last`."""
    trace, found = draft.trace, set[int]()
    for k, op in enumerate(trace.ops):
        if not op.name.startswith(_SCATTER) or op.phase is not Phase.BACKWARD:
            continue
        for g in (i for i in op.writes if trace.storages[i].kind is Kind.GRAD):
            found.add(g)
            size = trace.storages[g].nbytes
            at = k + 1 if trace.ops[k + 1].name == _SUM and g in trace.ops[k + 1].writes else k
            send = Op(
                name=SEND, module=op.module, phase=Phase.BACKWARD, lane=Lane.TO_HOST, reads=(g,), moved_bytes=size
            )  # fmt: skip
            draft.after.setdefault(at, []).append(send)
            if not any(e.storage == g for e in op.events):  # added to what is there
                continue
            out = draft.add(made_storage(size, Kind.COMM, "gradients", trace.storages[g]))
            held = last >= 0 and sum(e.nbytes > 0 and e.stream == SCATTER_STREAM for e in op.events) == 1
            events = [Event(e.nbytes, e.stream, out) if e.storage == g else e for e in draft.ops[k].events]
            if not held:
                events.append(Event(-size, SCATTER_STREAM, out))
            draft.ops[k] = op_like(draft.ops[k], events=tuple(events))
            if held:
                draft.ops[last] = op_like(
                    draft.ops[last], events=(*draft.ops[last].events, Event(-size, SCATTER_STREAM, out))
                )
    return found
