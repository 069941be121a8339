"""What would lower the peak of a step, each measured by playing the changed step on the allocator.

    expandable_segments   the same events on expandable segments: what fragmentation costs
    fused_optimizer       without the temporaries of the update: what `foreach` costs
    free_gradients        gradients that live from the update to the next backward, freed in between
    chunked_loss          logits and their copies an eighth as large, as a loss computed in chunks has them
    late_frees            what is still held after the last operator that uses it: a variable, or a reference cycle

Each is the difference of peak reserved bytes, and is told only where it is worth something.

>>> from dnnmem.estimator.trace import Kind
>>> y = Storage(id=0, nbytes=2**30, kind=Kind.TEMP)
>>> last = Op(name="b", events=(Event(2**30, 0, -1), Event(-(2**30), 0, -1), Event(-(2**30), 0, 0)))
>>> trace = Trace(ops=(Op(name="a", writes=(0,), events=(Event(2**30, 0, 0),)), last), storages={0: y})
>>> [(advice.name, advice.saves_bytes >> 20) for advice in advise(trace)]
[('late_frees', 1024)]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from dnnmem.estimator.allocator_settings import AllocatorSettings
from dnnmem.estimator.profile import Advice
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.timeline import alive_at, timeline
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.units import format_bytes

MOST_EVENTS = 300_000
"""Steps with more are not played again and again: it would take a minute."""
CHUNKS = 8
"""Pieces of the loss."""
_WORTH = 0.01
"""Share of the peak that a change must save to be told."""
_LOGITS = 8192
"""Shortest last dimension of what is taken for logits: a vocabulary."""
_LOGITS_BYTES = 2**26
_LARGEST = 2**20
"""Smallest block that is named."""


def advise(trace: Trace, reserved_bytes: int | None = None) -> tuple[Advice, ...]:
    """What would lower the peak of `trace`, most first; nothing for a step of more than `MOST_EVENTS` events.

    `reserved_bytes` is the peak that each change is held against, where the caller knows it already: the replay's, or
    that of a recorded history, which a replay that begins in its middle cannot give.

    Raises `TraceError` for a trace whose events do not fit together.
    """
    if sum(len(op.events) for op in trace.ops) > MOST_EVENTS or not trace.ops:
        return ()
    peak = reserved_bytes or _reserved(trace)
    found = (rule(trace, peak) for rule in _RULES)
    told = [advice for advice in found if advice is not None and advice.saves_bytes > _WORTH * peak]
    return tuple(sorted(told, key=lambda advice: -advice.saves_bytes))


def _reserved(trace: Trace, settings: AllocatorSettings | None = None) -> int:
    return replay_trace(trace, settings).peak_reserved_bytes


def _expandable(trace: Trace, peak: int) -> Advice:
    saves = peak - _reserved(trace, AllocatorSettings(expandable_segments=True))
    return Advice(
        name="expandable_segments",
        saves_bytes=saves,
        text=f"{format_bytes(max(saves, 0))} at the peak is fragmentation that expandable segments avoid: "
        "set PYTORCH_ALLOC_CONF=expandable_segments:True.",
    )


def _fused(trace: Trace, peak: int) -> Advice | None:
    temporary = {
        i for i, s in trace.storages.items() if s.kind is Kind.TEMP and i not in trace.pinned and not s.name
    } & _made_in(trace, Phase.STEP)

    def keep(op: Op) -> tuple[Event, ...]:
        if op.phase is not Phase.STEP:
            return op.events
        return tuple(event for event in op.events if event.storage >= 0 and event.storage not in temporary)

    if all(keep(op) == op.events for op in trace.ops):
        return None
    changed = _without_unpaired(trace, keep)
    return Advice(
        name="fused_optimizer",
        saves_bytes=peak - _reserved(changed),
        text="The optimizer's temporaries make the peak: fused=True (or foreach=False, slower) needs none of them.",
    )


def _free_gradients(trace: Trace, peak: int) -> Advice | None:
    grads = {i for i in trace.pinned if trace.storages[i].kind is Kind.GRAD and trace.storages[i].nbytes}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, op in enumerate(trace.ops):
        for i in grads.intersection((*op.reads, *op.writes)):
            if op.phase is Phase.BACKWARD:
                first.setdefault(i, index)
            if op.phase is Phase.STEP:
                last[i] = index
    grads = {i for i in grads if i in first and i in last and first[i] < last[i]}
    if not grads or any(event.storage in grads for op in trace.ops for event in op.events):
        return None
    before, after = _by_op(first, grads, trace), _by_op(last, grads, trace)
    ops = [
        replace(
            op,
            events=(
                *(Event(n, 0, i) for i, n in before[index]),
                *op.events,
                *(Event(-n, 0, i) for i, n in after[index]),
            ),
        )
        for index, op in enumerate(trace.ops)
    ]
    setup = tuple(event for event in trace.setup if event.storage not in grads)
    saves = peak - _reserved(replace(trace, ops=tuple(ops), pinned=trace.pinned - grads, setup=setup))
    held = sum(trace.storages[i].nbytes for i in grads)
    return Advice(
        name="free_gradients",
        saves_bytes=saves,
        text=f"{format_bytes(held)} of gradients live through the forward pass: "
        "call optimizer.zero_grad(set_to_none=True) after the step.",
    )


def _by_op(places: Mapping[int, int], chosen: set[int], trace: Trace) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i in sorted(chosen):
        found[places[i]].append((i, trace.storages[i].nbytes))
    return found


def _chunked_loss(trace: Trace, peak: int) -> Advice | None:
    curve = timeline(trace)
    alive = alive_at(trace, curve.peak)
    logits = {i for i in alive if i >= 0 and _is_logits(trace.storages[i]) and i not in trace.pinned}
    if not logits:
        return None
    smaller = {i: -(-trace.storages[i].nbytes // CHUNKS) for i in logits}

    def scaled(event: Event) -> Event:
        nbytes = smaller.get(event.storage)
        sign = (event.nbytes > 0) - (event.nbytes < 0)
        return event if nbytes is None else event._replace(nbytes=sign * nbytes)

    ops = tuple(replace(op, events=tuple(map(scaled, op.events))) for op in trace.ops)
    setup = tuple(map(scaled, trace.setup))
    one = max((trace.storages[i] for i in logits), key=lambda s: s.nbytes)
    shape = ",".join(map(str, one.shape))
    total = sum(trace.storages[i].nbytes for i in logits)
    return Advice(
        name="chunked_loss",
        saves_bytes=peak - _reserved(replace(trace, ops=ops, setup=setup)),
        text=f"{len(logits)} tensors as large as the logits, {one.dtype}[{shape}], take {format_bytes(total)} at the "
        f"peak: compute the loss in {CHUNKS} chunks, or by a fused linear cross-entropy.",
    )


def _is_logits(storage: Storage) -> bool:
    return (
        storage.nbytes >= _LOGITS_BYTES
        and len(storage.shape) > 1
        and storage.shape[-1] >= _LOGITS
        and storage.shape[-1] > storage.shape[0] // CHUNKS
        and storage.kind in (Kind.ACTIVATION, Kind.TEMP)
    )


def _late_frees(trace: Trace, peak: int) -> Advice | None:
    used: dict[int, int] = {}
    freed: dict[int, int] = {}
    for index, op in enumerate(trace.ops):
        for i in (*op.reads, *op.writes):
            used[i] = index
        for event in op.events:
            if event.nbytes < 0:
                freed[event.storage] = index
    late = {
        i
        for i, at in freed.items()
        if i in used and used[i] < at and i not in trace.pinned and trace.storages[i].nbytes >= _LARGEST
    }
    if not late:
        return None
    after = _by_op(used, late, trace)
    ops = [
        replace(
            op,
            events=(
                *(e for e in op.events if e.nbytes > 0 or e.storage not in late),
                *(Event(-n, 0, i) for i, n in after[index]),
            ),
        )
        for index, op in enumerate(trace.ops)
    ]
    worst = max(late, key=lambda i: trace.storages[i].nbytes * (freed[i] - used[i]))
    made = trace.storages[worst]
    whose = ".".join(made.module) or "the model"
    return Advice(
        name="late_frees",
        saves_bytes=peak - _reserved(replace(trace, ops=tuple(ops))),
        text=f"{len(late)} tensors are held after their last use, the worst of {format_bytes(made.nbytes)} made in "
        f"{whose}: del the variables that hold them (outputs, losses), and break reference cycles.",
    )


def _made_in(trace: Trace, phase: Phase) -> set[int]:
    return {event.storage for op in trace.ops if op.phase is phase for event in op.events if event.nbytes > 0}


def _without_unpaired(trace: Trace, keep: Callable[[Op], Iterable[Event]]) -> Trace:
    """The trace with the events that are kept, without frees of what is not allocated any longer."""
    ops: list[Op] = []
    gone: set[int] = set()
    for op in trace.ops:
        kept = tuple(keep(op))
        gone |= {e.storage for e in op.events if e.nbytes > 0}
        gone -= {e.storage for e in kept if e.nbytes > 0}  # temporaries of several operators share numbers
        ops.append(replace(op, events=tuple(e for e in kept if e.nbytes > 0 or e.storage not in gone)))
    return replace(trace, ops=tuple(ops))


_RULES: tuple[Callable[[Trace, int], Advice | None], ...] = (
    _expandable,
    _fused,
    _free_gradients,
    _chunked_loss,
    _late_frees,
)
