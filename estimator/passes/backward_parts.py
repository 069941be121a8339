"""A chunk's backward pass in two parts: the gradients that another chunk waits for, and those of weights.

    backward   dy -> dW2, dh -> dW1, dx, send dx          inputs    dy -> dh -> dx, send dx
                                                          weights   dW2, dW1

What the forward pass has saved lives until the second part is done, since both follow one graph (PyTorch's stages); of
what the first part makes, the second finds what it reads. The first chunk sends nothing: all is in the second part.
"""

from __future__ import annotations

from dnnmem.estimator.passes.pipeline_buffers import SEND
from dnnmem.estimator.trace import Event, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like


def weight_ops(trace: Trace) -> frozenset[int]:
    """Indices of the backward ops that no message to another chunk needs."""
    needed: set[int] = set()
    found = set()
    for k in range(len(trace.ops) - 1, -1, -1):
        op = trace.ops[k]
        if op.phase is not Phase.BACKWARD:
            continue
        if op.name == SEND or needed.intersection(op.writes):
            needed.update(op.reads)
        else:
            found.add(k)
    return frozenset(found)


def backward_parts(trace: Trace) -> tuple[list[Op], list[Op]]:
    """The ops of both parts, each with the events that it then has."""
    later = weight_ops(trace)
    first = [op for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD and k not in later]
    second = [trace.ops[k] for k in sorted(later)]
    if not first or not second:
        return first, second
    made = {e.storage for op in trace.ops if op.phase is Phase.FORWARD for e in op.events if e.nbytes > 0}
    last: dict[int, int] = {}
    ops = first + second
    for k, op in enumerate(ops):
        last.update(dict.fromkeys((*op.reads, *op.writes), k))
    freed: list[list[Event]] = [[] for _ in ops]
    for k, op in enumerate(ops):
        kept = []
        for e in op.events:
            end = len(ops) - 1 if e.storage in made else last.get(e.storage, k)
            if e.storage < 0 or e.nbytes > 0 or end <= k:
                kept.append(e)
            else:
                freed[end].append(e)
        ops[k] = op_like(op, events=tuple(kept))
    ops = [op_like(op, events=(*op.events, *more)) if more else op for op, more in zip(ops, freed, strict=True)]
    return ops[: len(first)], ops[len(first) :]
