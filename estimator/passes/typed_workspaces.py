"""Workspaces of convolutions in half precision: cuDNN's tensor-core kernels read and write NHWC.

    x (N, C, H, W)  --transposed-->  x' ++ y'  --transposed-->  y (N, K, H, W)      channels in eights

A step recorded in float32 has the workspaces of TF32 kernels, of which some transpose one tensor, some both or none.
Of ResNet-50's 161 convolutions in bfloat16 cuDNN 9.24 answers so to most on an H100, to within the size of the weights.
"""

from __future__ import annotations

from math import prod

from dnnmem.estimator.passes.autocast_lists import base
from dnnmem.estimator.passes.typed_draft import FLOAT, TypedDraft
from dnnmem.estimator.passes.update import SIZES
from dnnmem.estimator.trace import Event, Op, Storage
from dnnmem.estimator.trace_copy import op_like

_EIGHT = 8


def transpose_workspaces(d: TypedDraft) -> None:
    """Give convolutions that run in the lower type the workspaces that they need there, if they have any at all."""
    mine = [k for k, op in enumerate(d.ops) if base(op.name) in {"convolution", "convolution_backward"}]
    if not any(e.storage < 0 for k in mine for e in d.ops[k].events):
        return  # nobody could be asked
    for k in mine:
        op = d.draft.ops[k]
        if d.type(op.reads[0]) == d.lower:
            d.draft.ops[k] = op_like(op, events=_events(d, op))


def _events(d: TypedDraft, op: Op) -> tuple[Event, ...]:
    """Those of `op`: as much for the output as for each gradient that is a product of two large tensors."""
    storages = d.draft.storages
    needed = _needed(d, op)
    events: list[Event] = []
    for e in op.events:
        if e.storage < 0:
            if needed is None:
                events.append(e._replace(nbytes=e.nbytes * SIZES[d.lower] // SIZES[FLOAT]))
            continue
        events.append(e)
        if needed and e.nbytes > 0 and e.storage in op.writes and len(storages[e.storage].shape) > 2:
            name = -len(events)
            events += [Event(needed, e.stream, name), Event(-needed, e.stream, name)]
    return tuple(events)


def _needed(d: TypedDraft, op: Op) -> int | None:
    """Bytes of the two large tensors transposed; None where that is not known: grouped ones, NHWC as it is."""
    forward = base(op.name) == "convolution"
    first, second = (d.draft.storages[i] for i in (op.reads[:2] if forward else op.reads[1:3]))
    other = d.draft.storages[op.writes[0] if forward else op.reads[0]]
    if first.channels_last or len(second.shape) < 3 or first.shape[1] != second.shape[1]:
        return None
    return _transposed(first, d.lower) + _transposed(other, d.lower)


def _transposed(storage: Storage, dtype: str) -> int:
    n, channels, *space = storage.shape
    return n * -(-channels // _EIGHT) * _EIGHT * prod(space) * SIZES[dtype]
