"""The step of a pipeline's rank, micro-batch by micro-batch in the order of its schedule: made to be played.

    F0 F1 B0 F2 B1 B2 | update        each micro-batch has storages of its own, parameters and states are there once

A gradient is made by a step's first backward pass, added to by the others, and goes with the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dnnmem.estimator.passes.backward_parts import held_apart
from dnnmem.estimator.passes.pipeline_buffers import SEND, received, staying
from dnnmem.estimator.pipeline_timing import in_flight
from dnnmem.estimator.rank_chunk import by_letter
from dnnmem.estimator.rank_writer import Writer
from dnnmem.estimator.schedules.grid import Step
from dnnmem.estimator.send_waits import held_by_its_send, kernels_of, lingering, with_waits
from dnnmem.estimator.trace import Event, Phase, Trace


def rank_step(
    chunks: Sequence[Trace],
    steps: Sequence[Step],
    copies: int = 0,
    places: int = 1,
    *,
    folded: bool = False,
    peers: int | None = None,
) -> Trace:
    """The step of a rank that holds `chunks`: an op for each of the schedule's `steps`, then the update.

    Its ops carry events and flops: it is made to be played, not to be timed. `copies` of the weights rest beside them,
    and each message has `places`, where it has its own. `folded`: the second chunk follows the first one in the model,
    and is handed its outputs as they are. `peers`: ranks that it sends to; None = one for each direction.
    """
    apart = {step.chunk for step in steps if step.phase == "I"}
    held = {id(chunk): held_apart(chunk) for c, chunk in enumerate(chunks) if c in apart}
    whole = [by_letter(chunk) for chunk in chunks]  # autograd adds up in place where nothing else holds a term
    chunks = [held.get(id(chunk), chunk) for chunk in chunks]
    writer = Writer(chunks, whole, copies, places, folded=folded)
    ends = {step.chunk: n for n, step in enumerate(steps)}
    ahead = writer.ahead(steps, apart)
    ops = [
        op
        for n, step in enumerate(steps)
        for op in (*writer.fetched(*ahead[n], step.chunk), *writer.ops(step), *writer.reductions(n, ends))
    ]
    late = held_by_its_send(chunks, steps, places)
    if late is not None:
        ops = lingering(ops, writer.own.get((0, late[0]), {}), *late[1:])
    sent = writer.on_wire if any(map(received, chunks)) else set()
    if sent:  # stages divide each gradient by the number of micro-batches, in place
        writer.kernels[-1] += len(writer.grads)
    update = [*writer.update()]
    kernels = [*writer.kernels, *map(kernels_of, update)]
    ops, waiting = with_waits([*ops, *update], kernels, sent, _streams(chunks, peers))
    setup = tuple(Event(writer.storages[i].nbytes, 0, i) for i in writer.early if writer.storages[i].nbytes)
    first = chunks[0]
    note = f"At most {in_flight(tuple(steps))} micro-batches of its chunks are held at once."
    origin = replace(first.origin, notes=(*first.origin.notes, note))
    return replace(
        first,
        ops=tuple(ops),
        storages=writer.storages,
        setup=(*setup, *waiting),
        pinned=frozenset(writer.pinned),
        origin=origin,
    )


def _streams(chunks: Sequence[Trace], peers: int | None) -> int:
    """On how many streams a rank sends: one for each peer, and where sends and receives go at once another one."""
    ways = {op.phase for chunk in chunks for op in chunk.ops if op.name == SEND and op.phase is not Phase.STEP}
    at_once = not any(map(staying, chunks))  # 1F1B, whose sends are not all waited for when its step is over
    return at_once + (len(ways) if peers is None else peers)


def writer_of(chunks: Sequence[Trace], copies: int = 0, places: int = 1, *, folded: bool = False) -> Writer:
    """For a rank whose backward passes are whole ones."""
    return Writer(chunks, [by_letter(chunk) for chunk in chunks], copies, places, folded=folded)
