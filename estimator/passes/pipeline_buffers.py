"""What PyTorch's stages hold of messages: places for all that is received, and what is sent for longer than it takes.

    received    a buffer for each micro-batch, forward and backward, made once for the whole run; what the plain step
                adds to a gradient in place makes a new one instead, since the buffer is not its own
    activations sent      are the outputs that their backward pass begins with: until that is over
    gradients sent        until the next micro-batch's are
    both, but in 1F1B     until the step is over, when its sends are waited for

A chunk stays one micro-batch: its buffers are pinned, and whoever plays a rank gives each micro-batch its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

SEND, RECEIVE = "dnnmem.send.pp", "dnnmem.recv.pp"
"""A send costs its bytes; the receiving op only makes the storages."""
ALL_SENT, LAST_SENT = "wait.pp", "drop.pp"
"""Free what all micro-batches have sent, or what the last one has: the others' is gone by then."""


def staying(trace: Trace) -> frozenset[int]:
    """What a chunk sends and holds until the step is over."""
    return frozenset(e.storage for op in trace.ops if op.name == ALL_SENT for e in op.events)


def received(trace: Trace) -> frozenset[int]:
    """Storages of a chunk that messages come in, where they have places of their own."""
    return frozenset(i for op in trace.ops if op.name == RECEIVE for i in op.writes if i in trace.pinned)


def with_buffers(chunk: Trace, *, waits: bool = False) -> Trace:
    """`chunk` as PyTorch's stages hold it; `waits`: its sends are waited for when the step is over."""
    places = dict.fromkeys(i for op in chunk.ops if op.name == RECEIVE for i in op.writes)
    for i in places:
        chunk = _left_alone(chunk, i)
    until: dict[int, Phase] = {}
    for op in chunk.ops:
        if op.name == SEND and op.phase is not Phase.STEP:
            later = Phase.BACKWARD if op.phase is Phase.FORWARD and not waits else Phase.STEP
            until.update((i, later) for i in op.reads if i not in chunk.pinned and i not in places)
    freed: dict[int, Event] = {}
    ops = [_without(op, places, until, freed) for op in chunk.ops]
    backward = [k for k, op in enumerate(ops) if op.phase is Phase.BACKWARD]
    step = next((k for k, op in enumerate(ops) if op.phase is Phase.STEP), None)
    for i, event in freed.items():
        if until[i] is Phase.BACKWARD and backward:
            ops[backward[-1]] = op_like(ops[backward[-1]], events=(*ops[backward[-1]].events, event))
    last = tuple(event for i, event in freed.items() if until[i] is Phase.STEP or not backward)
    if last:
        done = Op(name=ALL_SENT if waits else LAST_SENT, phase=Phase.STEP, lane=Lane.COMM, events=last)
        ops.insert(len(ops) if step is None else step, done)
    made = tuple(Event(chunk.storages[i].nbytes, 0, i) for i in places if chunk.storages[i].nbytes)
    return replace(chunk, ops=tuple(ops), pinned=chunk.pinned | places.keys(), setup=(*chunk.setup, *made))


def with_stand_ins(chunk: Trace, made: Sequence[Storage]) -> Trace:
    """`chunk`, a later one, with what the model's own code makes of the stand-ins before its first block.

    The code adds up embeddings there; its variable holds the sum until it is given the first block's output.
    """
    first = next((k for k, op in enumerate(chunk.ops) if op.phase is Phase.FORWARD and op.name != RECEIVE), None)
    if first is None or not made:
        return chunk
    inside = [k for k, op in enumerate(chunk.ops) if op.phase is Phase.FORWARD]
    block = chunk.ops[first].module[:2]
    last = next((k - 1 for k in inside if k > first and chunk.ops[k].module[:2] != block), inside[-1])
    ops, storages = list(chunk.ops), dict(chunk.storages)
    for s in made:
        own = max(storages) + 1
        storages[own] = storage_like(s, id=own, kind=Kind.TEMP)
        ops[first] = op_like(ops[first], events=(Event(s.nbytes, 0, own), *ops[first].events))
        ops[last] = op_like(ops[last], events=(*ops[last].events, Event(-s.nbytes, 0, own)))
    return replace(chunk, ops=tuple(ops), storages=storages)


def _left_alone(chunk: Trace, place: int) -> Trace:
    """`chunk`, which writes to what it has received, with a storage of its own from there on."""
    written = (k for k, op in enumerate(chunk.ops) if place in op.writes and op.name != RECEIVE)
    first = next((k for k in written if chunk.ops[k].phase is Phase.BACKWARD), None)
    if first is None:
        return chunk
    own, nbytes = max(chunk.storages) + 1, chunk.storages[place].nbytes
    ops = [*chunk.ops[:first], *(renamed(op, {place: own}) for op in chunk.ops[first:])]
    made = Event(nbytes, 0, own)
    ops[first] = op_like(ops[first], reads=chunk.ops[first].reads, events=(made, *ops[first].events))
    storage = storage_like(chunk.storages[place], id=own, kind=Kind.TEMP)
    return replace(chunk, ops=tuple(ops), storages={**chunk.storages, own: storage})


def _without(op: Op, places: Iterable[int], until: Mapping[int, Phase], freed: dict[int, Event]) -> Op:
    """`op` without what becomes of buffers, and with frees of what is sent taken out, into `freed`."""
    kept = []
    for event in op.events:
        if event.storage in until and event.nbytes < 0:
            freed[event.storage] = event
        elif event.storage not in places:
            kept.append(event)
    return op if len(kept) == len(op.events) else op_like(op, events=tuple(kept))
