"""A chunk's backward pass in two parts: the gradients that another chunk waits for, and those of weights.

    backward   dy -> dW2, dh -> dW1, dx, send dx          inputs    dy -> dh -> dx, send dx
                                                          weights   dW1, dW2: module by module, as they are registered

As PyTorch's stages have it (`torch/distributed/pipelining/_backward.py`): the first part goes through the whole graph
and keeps it, with the gradients of outputs that the second part begins with; what lies before the first weight goes
with the loss. The second part lets go of a module's inputs once it is done, and of the rest of the graph at the end.
A norm's backward runs in both. The first chunk sends nothing: all is in the second part, as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import replace

from dnnmem.estimator.block_list import Path
from dnnmem.estimator.passes.pipeline_buffers import SEND
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

_ADD = "aten.add_.Tensor"


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
    backward = [k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD]
    first = [k for k in backward if k not in later]
    if not first or not later:
        return [trace.ops[k] for k in first], [trace.ops[k] for k in sorted(later)]
    grads = _gradients(trace)
    twice = [k for k in first if grads.intersection(trace.ops[k].writes)]
    inputs = [_only(trace.ops[k], lambda i: i not in grads) for k in first]
    groups = _groups(trace, [*later, *twice], grads)
    frees = {e.storage: e for k in backward for e in trace.ops[k].events if e.nbytes < 0 <= e.storage}
    made = {e.storage for op in trace.ops if op.phase is Phase.FORWARD for e in op.events if e.nbytes > 0}
    started = [k for k in first if k >= min(later)]
    past, through = (_used(trace.ops[k] for k in ks) for ks in (started, (k for k in first if k not in twice)))
    in_groups = [_used(group) for group in groups]
    before: dict[int, list[Event]] = {}
    after: dict[int, list[Event]] = {}
    last = len(groups) - 1
    for i, event in frees.items():
        group = max((n for n, ids in enumerate(in_groups) if i in ids), default=-1)
        if i in grads:
            after.setdefault(min(group + 1, last), []).append(event)  # when the next module's are there
        elif group >= 0 and i not in made:  # the next module's take their place
            (before if group < last else after).setdefault(min(group + 1, last), []).append(event)
        elif group >= 0 and i not in through:
            after.setdefault(group, []).append(event)
        elif i in made:
            after.setdefault(last if i in past or group >= 0 else -1, []).append(event)
        else:
            if not any(event in op.events for op in inputs):
                at = max(n for n, op in enumerate(inputs) if i in op.reads or i in op.writes)
                inputs[at] = op_like(inputs[at], events=(*inputs[at].events, event))
            continue
        inputs = [op_like(op, events=_kept(op, {i})) if event in op.events else op for op in inputs]
    inputs[-1] = op_like(inputs[-1], events=(*inputs[-1].events, *after.get(-1, ())))
    weights: list[Op] = []
    for n, group_ops in enumerate(groups):
        bare = [op_like(op, events=_kept(op, frees)) for op in group_ops]
        bare[0] = op_like(bare[0], events=(*before.get(n, ()), *bare[0].events))
        bare[-1] = op_like(bare[-1], events=(*bare[-1].events, *after.get(n, ())))
        weights += bare
    return inputs, weights


def held_apart(trace: Trace) -> Trace:
    """`trace`, whose sums of gradients that the second part begins with are made beside them, not in their place."""
    later, grads = weight_ops(trace), _gradients(trace)
    ops, storages = [*trace.ops], dict(trace.storages)
    for k in range(len(ops) - 1, -1, -1):
        op = ops[k]
        if op.name != _ADD or op.phase is not Phase.BACKWARD or k in later or op.writes[0] in grads:
            continue
        i = op.writes[0]
        readers = [n for n in range(k) if i in ops[n].reads and (n in later or grads.intersection(ops[n].writes))]
        if not readers:
            continue
        own, nbytes = max(storages) + 1, storages[i].nbytes
        storages[own] = storage_like(storages[i], id=own)
        begun = next(n for n in range(k) if i in ops[n].writes and ops[n].phase is Phase.BACKWARD)
        ops[begun:k] = [renamed(one, {i: own}) for one in ops[begun:k]]
        end = ops[readers[-1]]
        ops[readers[-1]] = op_like(end, events=(*end.events, Event(-nbytes, 0, own)))
        reads = tuple(own if it == i else it for it in op.reads)
        ops[k] = op_like(op, reads=reads, events=(Event(nbytes, 0, i), *op.events))
    return replace(trace, ops=tuple(ops), storages=storages)


def _gradients(trace: Trace) -> set[int]:
    """Gradients of parameters, and what micro-batches add to them."""
    adds = (op for op in trace.ops if op.name == _ADD and op.phase is Phase.BACKWARD and len(op.reads) == 2)
    found = {op.reads[1] for op in adds if trace.storages[op.reads[0]].kind is Kind.GRAD}
    return found | {i for i, s in trace.storages.items() if s.kind is Kind.GRAD}


def _groups(trace: Trace, ops: Iterable[int], grads: Collection[int]) -> list[list[Op]]:
    """The ops that make gradients, of each module by itself, in the order in which modules are registered."""
    params = dict.fromkeys(s.module for s in trace.storages.values() if s.kind is Kind.PARAM)
    place = {module: n for n, module in enumerate(params)}
    found: dict[Path, list[Op]] = {}
    for k in sorted(ops):
        op = trace.ops[k]
        split = any(i in grads for i in op.writes) and op.name != _ADD and any(i not in grads for i in op.writes)
        found.setdefault(op.module, []).append(_only(op, lambda i: i in grads) if split else op)
    order = sorted(found, key=lambda module: place.get(module, len(place)))
    return [found[module] for module in order]


def _only(op: Op, wanted: Callable[[int], bool]) -> Op:
    """`op` without the writes and allocations of what is not wanted."""
    writes = tuple(i for i in op.writes if wanted(i))
    events = tuple(e for e in op.events if (e.storage not in op.writes if e.nbytes > 0 else True) or wanted(e.storage))
    return op if len(writes) == len(op.writes) else op_like(op, writes=writes, events=events)


def _used(ops: Iterable[Op]) -> set[int]:
    return {i for op in ops for i in (*op.reads, *op.writes)}


def _kept(op: Op, freed: Container[int]) -> tuple[Event, ...]:
    return tuple(e for e in op.events if e.nbytes > 0 or e.storage not in freed)
