"""`precision.linear` float8: linear layers multiply in 8 bits, as torchao's float8 training with dynamic scaling does.

    forward    x -> x8   w -> w8   x8 w8 -> y        each cast: largest size, scale, times it in float32, clamp, round
    backward   g -> g8   w -> w8   g8 w8 -> dx       saved are x and w as before: nothing rests in 8 bits
               g -> g8   x -> x8   g8 x8 -> dw       transposed copies of what lies the wrong way

Eagerly these casts are ops of their own, and their float32 temporaries weigh more than the 8 bits save; products are
twice as fast. Layers as `is_float8_layer` says, none outside of the blocks: heads stay as they are. Under autocast
weights go to 8 bits as they are, in float32: the copies in a lower type that autocast keeps of them fall away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.autocast_links import links
from dnnmem.estimator.passes.autocast_lists import base
from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.passes.update import SIZES
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster

LEAST_CAPABILITY = (8, 9)
"""Of GPUs that multiply in 8 bits."""
_PRODUCTS = {"mm", "addmm"}
_WIDE = 4


def is_float8_layer(inputs: int, outputs: int) -> bool:
    """True for a linear layer that is converted: kernels want sizes in sixteens."""
    return inputs % 16 == 0 and outputs % 16 == 0


def check_rows(rows: int, layer: str) -> None:
    """Raise `UnsupportedError` for a layer that is given no sixteens of rows, over which its gradient sums."""
    if rows % 16:
        raise UnsupportedError(
            f"precision.linear float8 multiplies in sixteens, but {layer} is given {rows} rows",
            hint="a batch of sixteens, or leave precision.linear out",
        )


def in_float8(trace: Trace, cluster: Cluster | None) -> Trace:
    """`trace` with its linear layers in float8; `UnsupportedError` for a GPU that cannot, or if there are none."""
    _check_gpu(trace, cluster)
    draft = Draft(trace)
    casts = _casts(trace)
    found = _layers(trace, casts)
    linked = links(trace.ops)
    back: dict[int, list[int]] = {}
    for k, f in linked.items():
        if f in found and base(trace.ops[k].name) == "mm":
            back.setdefault(f, []).append(k)
    if not found:
        raise UnsupportedError(
            "precision.linear float8 finds no linear layers in blocks, with sizes in sixteens and weights in the type "
            "of the products, or in float32 under autocast",
            hint="leave precision.linear out",
        )
    for f, (x, w) in found.items():
        check_rows(_rows(trace.storages[trace.ops[f].writes[0]]), ".".join(trace.ops[f].module))
        _forward(draft, f, x, w, casts)
        if len(back.get(f, ())) == 2:
            _backward(draft, _in_order(draft, min(back[f]), x, w), f, (x, w), casts)
    read = {i for op in draft.ops for i in op.reads}
    return _without(draft.finish(), {i for i in casts if i not in read})


def _check_gpu(trace: Trace, cluster: Cluster | None) -> None:
    device = cluster.device if cluster is not None else find_device(trace.origin.gpu) if trace.origin.gpu else None
    known = device.compute_capability if device is not None else None
    if device is not None and device.vendor != "nvidia":
        raise UnsupportedError(
            f"precision.linear float8 is known for NVIDIA's GPUs, and {device.name} is none of them",
            hint="leave precision.linear out",
        )
    if known is not None and tuple(map(int, known.split("."))) < LEAST_CAPABILITY:
        raise UnsupportedError(
            f"precision.linear is float8, but {device.name if device else ''} has compute capability {known}; "
            "products in 8 bits need 8.9 or more",
            hint="leave precision.linear out",
        )


def _casts(trace: Trace) -> dict[int, int]:
    """Copies of parameters in another type, made in the forward pass -> parameter."""
    return {
        op.writes[0]: op.reads[0]
        for op in trace.ops
        if op.phase is Phase.FORWARD and base(op.name) == "_to_copy" and len(op.reads) == len(op.writes) == 1
        and trace.storages[op.reads[0]].kind is Kind.PARAM
    }  # fmt: skip


def _layers(trace: Trace, casts: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """Forward ops of linear layers in lists of blocks -> what they multiply, and their weight or the copy of it."""
    types = {module.path: module.type for module in trace.modules}
    found = {}
    for k, op in enumerate(trace.ops):
        if op.phase is not Phase.FORWARD or base(op.name) not in _PRODUCTS or types.get(op.module) != "Linear":
            continue
        *_, x, w = (i for i in op.reads if len(trace.storages[i].shape) > 1)
        weight, out = trace.storages[w], trace.storages[op.writes[0]]
        is_weight = weight.kind is Kind.PARAM or w in casts
        if not is_weight or weight.dtype != out.dtype or not any(p.isdigit() for p in op.module):
            continue
        inputs, outputs = _sizes(trace.storages, w, casts)
        if is_float8_layer(inputs, outputs):
            found[k] = (x, w)
    return found


def _sizes(storages: Mapping[int, Storage], w: int, casts: Mapping[int, int]) -> tuple[int, int]:
    """Inputs and outputs of a weight."""
    outputs, inputs = storages[casts.get(w, w)].shape
    return inputs, outputs


def _without(trace: Trace, gone: set[int]) -> Trace:
    """`trace` without the copies that nothing reads any more."""
    ops: list[Op] = []
    for op in trace.ops:
        left = tuple(e for e in op.events if e.storage not in gone)
        if gone.isdisjoint(op.writes):
            ops.append(op if len(left) == len(op.events) else op_like(op, events=left))
        elif left:
            ops[-1] = op_like(ops[-1], events=(*ops[-1].events, *left))
    return replace(trace, ops=tuple(ops), storages={i: s for i, s in trace.storages.items() if i not in gone})


def _cast(draft: Draft, place: Op, read: int, shape: tuple[int, int], role: str) -> tuple[int, Op]:
    """The op that casts `read`, seen as `shape`, and what it makes; `role`: "x", "w" or "g"; at the place of a product.

    A weight is read transposed, so that its largest size is sought in a copy.
    """
    types = (draft.trace.storages[i].dtype for i in (read, place.writes[0]))
    count, size = prod(shape), next(SIZES[kind] for kind in types if kind in SIZES)
    kind = "float8_e5m2" if role == "g" else "float8_e4m3fn"
    low = draft.add(Storage(id=0, nbytes=count, kind=Kind.TEMP, shape=shape, dtype=kind, module=place.module))
    sizes, wide, scaled, clamped = (size * count, -1), (_WIDE * count, -2), (_WIDE * count, -3), (_WIDE * count, -4)
    copy = (size * count, -5)
    order = [sizes, *([copy, _gone(copy)] if role == "w" else []), _gone(sizes)]
    order += [wide, scaled, _gone(wide)] if size != _WIDE else [scaled]
    order += [clamped, (count, low), _gone(clamped), _gone(scaled)]
    moved = count * (3 * size + (size + _WIDE if size != _WIDE else 0) + 5 * _WIDE + 1)
    return low, Op(
        name="aten._to_copy.default", module=place.module, phase=place.phase, reads=(read,), writes=(low,),
        events=tuple(Event(nbytes, 0, i) for nbytes, i in order), moved_bytes=moved, source=place.source,
    )  # fmt: skip


def _gone(made: tuple[int, int]) -> tuple[int, int]:
    return -made[0], made[1]


def _product(draft: Draft, k: int, factors: tuple[int, ...], events: Iterable[Event]) -> None:
    """Make op `k` a product of `factors`; `events` come with it, and then what was freed there."""
    op = draft.ops[k]
    left = (e for e in op.events if e.nbytes < 0 and e.storage >= 0)
    moved = sum(draft.storages[i].nbytes for i in (*factors, *op.writes))
    draft.ops[k] = op_like(
        op, name="aten._scaled_mm.default", reads=factors, events=(*events, *left), moved_bytes=moved
    )


def _forward(draft: Draft, k: int, x: int, w: int, casts: Mapping[int, int]) -> None:
    """Casts before the product, which go when it is done; a bias is added afterwards, into another tensor."""
    op, storages = draft.ops[k], draft.storages
    out, (inputs, outputs) = storages[op.writes[0]], _sizes(storages, w, casts)
    low_x, cast_x = _cast(draft, op, x, (_rows(out), inputs), "x")
    low_w, cast_w = _cast(draft, op, casts.get(w, w), (outputs, inputs), "w")
    draft.before.setdefault(k, []).extend([cast_x, cast_w])
    biases = [i for i in op.reads if i not in {x, w}]
    made, gone = Event(out.nbytes, 0, out.id), [Event(-storages[i].nbytes, 0, i) for i in (low_w, low_x)]
    events = [made, *gone]
    if biases:
        copies = [(storages[i].nbytes, -2) for i in biases if i in casts]
        order = [*copies, (out.nbytes, out.id), *map(_gone, copies), (-out.nbytes, -1)]
        events = [Event(out.nbytes, 0, -1), *gone, *(Event(nbytes, 0, i) for nbytes, i in order)]
    _product(draft, k, (low_x, low_w, *(casts.get(i, i) for i in biases)), events)


def _backward(draft: Draft, ops: tuple[int, int], f: int, read: tuple[int, int], casts: Mapping[int, int]) -> None:
    """The gradient of the input first, then that of the weight; casts of the first stay until both are there."""
    (x, w), out = read, draft.trace.storages[draft.trace.ops[f].writes[0]]
    rows, (inputs, outputs) = _rows(out), _sizes(draft.trace.storages, w, casts)
    g = next(i for i in draft.ops[ops[0]].reads if i != w)
    low: list[int] = []
    for k, i, shape, role in ((ops[0], w, (outputs, inputs), "w"), (ops[1], x, (rows, inputs), "x")):
        place = draft.ops[k]
        low_g, cast_g = _cast(draft, place, g, (rows, outputs), "g")
        cast_g = op_like(cast_g, reads=(g, casts.get(w, w), x))  # what was saved is asked for first
        low_i, cast = _cast(draft, place, casts.get(i, i), shape, role)
        draft.before.setdefault(k, []).extend([cast_g, cast])
        low += [low_g, low_i]
        made = draft.storages[place.writes[0]]
        turned = [(prod(shape), -1)] if role == "w" else [(rows * outputs, -1), (prod(shape), -2)]
        order = [*turned, (made.nbytes, made.id), *map(_gone, turned)]
        order += [(-draft.storages[j].nbytes, j) for j in low] if role == "x" else []
        _product(draft, k, (low_g, low_i), [Event(nbytes, 0, j) for nbytes, j in order])


def _in_order(draft: Draft, first: int, x: int, w: int) -> tuple[int, int]:
    """Bring what follows from op `first`, one of two products, into torchao's order; where the products then are.

    The bias's gradient comes first, then the input's, then the weight's; casts of gradients follow what they read, but
    that of the input's comes last. What the layer saved is let go with the weight's gradient, or its cast.
    """
    ops = draft.ops
    g = next(i for i in ops[first].reads if i not in {x, w})
    rank: dict[int, int] = {}
    last = first
    while last < len(ops) and ops[last].phase is Phase.BACKWARD and ops[last].module == ops[first].module:
        op = ops[last]
        mine = [rank[i] for i in op.reads if i in rank]
        if g in op.reads and len(op.writes) == 1:
            place = 2 if w in op.reads else 3 if base(op.name) == "mm" else 0
        elif mine and base(op.name) == "_to_copy":
            place = {0: 1, 2: 5, 3: 4}[mine[0]]
        else:
            break
        rank[op.writes[0]] = place
        last += 1
    order = sorted(ops[first:last], key=lambda op: rank[op.writes[0]])
    at = {rank[op.writes[0]]: first + k for k, op in enumerate(order)}
    outside = [e for op in order for e in op.events if e.nbytes < 0 and e.storage >= 0 and e.storage not in rank]
    for k, op in enumerate(order, first):
        gone = [e for e in outside if k == (at.get(4, at[3]) if e.storage in {x, w} else at[3])]
        ops[k] = op_like(op, events=(*(e for e in op.events if e not in outside), *gone))
    return at[2], at[3]


def _rows(out: Storage) -> int:
    return out.nbytes // SIZES[out.dtype] // out.shape[-1]
