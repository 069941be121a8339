"""How long the memory of what a stage has sent waits: until the GPU is past the send, far behind the host.

    host   F0  send  F1  send  B0  free, of what F0 sent ...         1,024 kernels later its memory serves again
    GPU                                              F0  send

NCCL sends on a stream of its own. PyTorch's allocator gives a block that another stream has used to nobody until an
event is complete that it records there when the block is freed, and the host runs ahead of a busy GPU as far as its
queue allows (`profilers/virtual_gpu/launch.py` has the sources). What is sent at the end of a step waits into the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from dnnmem.estimator.allocator_settings import MIN_BLOCK_BYTES
from dnnmem.estimator.op_class import OpClass, kind_of
from dnnmem.estimator.passes.pipeline_buffers import SEND, received
from dnnmem.estimator.schedules.grid import Step
from dnnmem.estimator.trace import Event, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like

IN_FLIGHT = 1024
"""Kernels and copies that a GPU's queue holds before the host has to wait."""
_MOST_STEPS = 2
"""Whole steps that a block waits at most: the third one is that whose peak counts."""
_PATIENCE = 32
"""So often a host asks in vain for events before that counts as waiting (`queue.c`): the allocator asks for those of
each stream whenever it is asked for memory."""
_KERNELS = {OpClass.NONE: 0, OpClass.NORM: 2, OpClass.ATTENTION_BACKWARD: 4}
"""Of an op, where they are not one; a norm's backward pass sums its parameters' gradients besides."""


def kernels_of(op: Op) -> int:
    """About how many kernels an op launches; a receive is one too."""
    kind = kind_of(op.name)
    if op.lane is Lane.COMM or (kind is OpClass.NORM and "backward" not in op.name):
        return 1
    return _KERNELS.get(kind, 1 if op.moved_bytes or op.flops else 0)


def microbatches_behind(chunk: Trace) -> int:
    """How many micro-batches the GPU is behind the host."""
    kernels = sum(kernels_of(op) for op in chunk.ops if op.phase is not Phase.STEP)
    return -(-IN_FLIGHT // kernels) if kernels else 0


def with_waits(
    ops: Sequence[Op], kernels: Sequence[int], sent: Collection[int], streams: int
) -> tuple[list[Op], list[Event]]:
    """`ops`, of a step that is repeated, with the ends of the waits of what is in `sent` when it is freed.

    `streams`: how many send; each peer has its own, and what is sent and received at once another one (`_batch_p2p`
    of torch/distributed/pipelining/schedules.py). Also what the set-up needs where a block waits for longer than a
    step: others, of hardly a size, whose ends are those that the first steps come to.
    """
    total = sum(kernels)
    if not sent or not total:
        return [*ops], []
    begun = [0, *accumulate(kernels)]
    asks = next((place for k, op in enumerate(ops) if (place := _asks(k, op, _PATIENCE // streams)) is not None), None)
    ends: dict[int, list[tuple[int, Event]]] = {}
    early: list[Event] = []
    for k, op in enumerate(ops):
        for n, event in enumerate(op.events):
            if event.nbytes >= 0 or event.storage not in sent:
                continue
            later = begun[k] + kernels[k] * (n + 1) // len(op.events) + IN_FLIGHT
            at = bisect_right(begun, later % total) - 1
            place = at, (later % total - begun[at]) * len(ops[at].events) // kernels[at]
            if asks is not None and (later >= total + begun[asks[0]] or (k <= asks[0] and later >= begun[asks[0]])):
                place = asks
            elif total <= IN_FLIGHT:
                steps = min(later // total, _MOST_STEPS)
                early += [event._replace(nbytes=sign * MIN_BLOCK_BYTES) for sign in (1, -1)] * steps
            ends.setdefault(place[0], []).append((place[1], event._replace(nbytes=0)))
    return [_with_ends(op, ends[k]) if k in ends else op for k, op in enumerate(ops)], early


def _asks(k: int, op: Op, most: int) -> tuple[int, int] | None:
    """Where an op has allocated so many tensors before its kernel that the allocator's asking has become a wait."""
    made = [n for n, event in enumerate(op.events) if event.nbytes > 0]
    return (k, made[most]) if op.name.startswith("aten._foreach_") and len(made) > most else None


def _with_ends(op: Op, ends: list[tuple[int, Event]]) -> Op:
    """`op` with the ends of waits, each before the event that it is given with."""
    ends.sort(key=lambda end: end[0])
    events: list[Event] = []
    for n, event in enumerate(op.events):
        while ends and ends[0][0] <= n:
            events.append(ends.pop(0)[1])
        events.append(event)
    return op_like(op, events=(*events, *(event for _, event in ends)))


def held_by_its_send(
    chunks: Sequence[Trace], steps: Sequence[Step], microbatches: int
) -> tuple[int, int, frozenset[int]] | None:
    """The micro-batch whose output the last send of 1F1B's first phase holds, until which backward, and the output.

    PyTorch's schedule keeps that send's handle until its last phase begins, and the handle keeps what was sent. Where
    so few of the `microbatches` are played that it would not show, the first one's output stands for it.
    """
    first = next((n for n, step in enumerate(steps) if step.phase != "F"), 0)
    last = max((n for n, step in enumerate(steps) if step.phase == "F"), default=0)
    sends = [op for op in chunks[0].ops if op.name == SEND and op.phase is Phase.FORWARD]
    if len(chunks) > 1 or first < 2 or last < first or not sends or not received(chunks[0]):
        return None
    shows = sum(step.phase == "F" for step in steps) >= 2 * first or microbatches < 2 * first
    return steps[first - 2 if shows else 0].microbatch, steps[last + 1].microbatch, frozenset(sends[0].reads)


def lingering(ops: list[Op], own: Mapping[int, int], until: int, output: frozenset[int]) -> list[Op]:
    """`ops` with the frees of a micro-batch's output moved to the end of the backward pass of another one."""
    ids = {own[i] for i in output if i in own}
    freed = [event for op in ops for event in op.events if event.storage in ids and event.nbytes < 0]
    end = max(n for n, op in enumerate(ops) if op.name == f"dnnmem.backward.{until}")
    found = [op_like(op, events=tuple(event for event in op.events if event not in freed)) for op in ops]
    found[end] = op_like(found[end], events=(*found[end].events, *freed))
    return found
