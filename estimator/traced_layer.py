"""What a step comes to that was not run but put together from a trace of one layer, as vTrain's table of one node was.

    traced    embedding | layer | norm, head, loss | their backward | layer's | embedding's       once, from idle
    span      of a kernel: from its start to the next one's; of the last one of a part, to its end
    step      the spans of the parts, as often as the model has them, then messages from a table, and the update
    send      between stages: the sender stands still for twice the bytes at a quarter of 800 Gb/s

So a layer keeps the pauses of that one run, however many layers there are: its forward pass begins on an idle GPU and
waits wherever the host is slower; before its backward pass the host has got ahead by what the head takes. Gradients are
new in a run of one micro-batch, and not added to others.

>>> spans_of([[1.0, 1.0], [1.0]], [[2.0, 3.0], [0.0]])
[[3.0, 1.0], [1.0]]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.block_list import BlockList, main_list
from dnnmem.estimator.local_step import Chunk, LocalStep
from dnnmem.estimator.schedules.grid import Costs
from dnnmem.estimator.trace import Kind, Lane, Op

_SENT_BYTES_PER_S = 800 * 2**30 / 8 / 4
"""What the predictor (`_compute_p2p_latency`) takes for messages between stages, whatever connects them."""
_SENT_TIMES = 2
"""As often as it counts their bytes."""
Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Indices = list[int]


class _Pass(NamedTuple):
    """Compute ops of a chunk's forward or backward pass."""

    ahead: Indices
    """Before its first block."""
    blocks: dict[int, Indices]
    """In each block."""
    behind: Indices
    """The others."""


def traced_seconds(step: LocalStep, seconds: Mapping[int, Floats], host: Mapping[int, Floats]) -> dict[int, Floats]:
    """Seconds of each op as such a table counts them, from those on the GPU and on the host; by the `id` of a chunk."""
    found = {key: value.copy() for key, value in seconds.items()}
    chunks = {id(chunk): chunk for chunk in step.chunks}
    for key, chunk in chunks.items():
        found[key][[i for i in chunk.backward.tolist() if _adds(chunk.trace.ops[i], chunk)]] = 0.0
    blocks = main_list(step.recorded)
    passes = {key: (_pass(c, c.forward, blocks), _pass(c, c.backward, blocks)) for key, c in chunks.items()}
    first, last = id(step.chunks[0]), id(step.chunks[-1])
    run = passes[first][0].blocks
    one = blocks.pattern if blocks and blocks.pattern in run and blocks.others else min(run, default=-1)
    layer = [each.blocks.get(one, []) for each in passes[first]]
    parts = [
        (first, passes[first][0].ahead), (first, layer[0]), (last, passes[last][0].behind),
        (last, passes[last][1].ahead), (first, layer[1]), (first, passes[first][1].behind),
    ]  # fmt: skip
    gpu, issued = ([[float(of[key][i]) for i in ops] for key, ops in parts] for of in (found, host))
    spans = spans_of(gpu, issued)
    for (key, ops), own in zip(parts, spans, strict=True):
        found[key][ops] = own
    for back, own in enumerate((spans[1], spans[4])):
        known = dict(zip(_names(chunks[first], layer[back]), own, strict=True))
        for key, chunk in chunks.items():
            for ops in passes[key][back].blocks.values():
                alike = zip(ops, _names(chunk, ops), strict=True)
                found[key][ops] = [known.get(name, found[key][i]) for i, name in alike]
    return found


def with_sends(forward: Costs, backward: Costs, nbytes: int) -> tuple[Costs, Costs]:
    """Seconds of each rank's chunks with their messages of `nbytes`: all but the last send on, all but the first back.

    >>> with_sends([[1.0], [1.0]], [[2.0], [2.0]], 0)
    ([[1.0], [1.0]], [[2.0], [2.0]])
    """
    gap, last = _SENT_TIMES * nbytes / _SENT_BYTES_PER_S, len(forward) - 1
    onward = [[seconds + gap * (rank < last) for seconds in row] for rank, row in enumerate(forward)]
    return onward, [[seconds + gap * (rank > 0) for seconds in row] for rank, row in enumerate(backward)]


def spans_of(seconds: Sequence[Sequence[float]], host: Sequence[Sequence[float]]) -> list[list[float]]:
    """Spans of ops that run once after each other, by part; 0 where there is no kernel."""
    issued = done = 0.0
    found = []
    for part, issues in zip(seconds, host, strict=True):
        starts = []
        for duration, issue in zip(part, issues, strict=True):
            issued += issue
            if duration:
                starts.append(max(issued, done))
                done = starts[-1] + duration
        own = iter(np.diff([*starts, done]).tolist())
        found.append([next(own) if duration else 0.0 for duration in part])
    return found


def _pass(chunk: Chunk, indices: Index, blocks: BlockList | None) -> _Pass:
    numbers = blocks.numbers(chunk.trace.ops) if blocks else [None] * len(chunk.trace.ops)
    found = _Pass([], {}, [])
    for i in indices.tolist():
        op, number = chunk.trace.ops[i], numbers[i]
        if op.lane is not Lane.COMPUTE or _adds(op, chunk):
            continue
        if number is not None:
            found.blocks.setdefault(number, []).append(i)
        else:
            (found.behind if found.blocks else found.ahead).append(i)
    return found


def _names(chunk: Chunk, ops: Indices) -> list[tuple[str, int]]:
    """Of ops of a block: which of that name each is."""
    seen: Counter[str] = Counter()
    found = []
    for name in (chunk.trace.ops[i].name for i in ops):
        found.append((name, seen[name]))
        seen[name] += 1
    return found


def _adds(op: Op, chunk: Chunk) -> bool:
    """True for an op that adds a gradient to those of earlier micro-batches."""
    storages = chunk.trace.storages
    return op.name.startswith("aten.add_.") and any(i in storages and storages[i].kind is Kind.GRAD for i in op.writes)
