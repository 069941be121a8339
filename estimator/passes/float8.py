"""`precision.linear` float8: linear layers multiply in 8 bits, as torchao's float8 training with dynamic scaling does.

    forward    x -> x8   w -> w8   x8 w8 -> y        each cast: largest size, scale, times it in float32, clamp, round
    backward   g -> g8   w -> w8   g8 w8 -> dx       saved are x and w as before: nothing rests in 8 bits
               g -> g8   x -> x8   g8 x8 -> dw       transposed copies of what lies the wrong way

Eagerly these casts are ops of their own, and their float32 temporaries weigh more than the 8 bits save; products are
twice as fast. Layers as `is_float8_layer` says, none outside of the blocks: heads stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def in_float8(trace: Trace, cluster: Cluster | None) -> Trace:
    """`trace` with its linear layers in float8; `UnsupportedError` for a GPU that cannot, or if there are none."""
    _check_gpu(trace, cluster)
    draft = Draft(trace)
    found = _layers(trace)
    linked = links(trace.ops)
    back: dict[int, list[int]] = {}
    for k, f in linked.items():
        if f in found and base(trace.ops[k].name) == "mm":
            back.setdefault(f, []).append(k)
    if not found:
        raise UnsupportedError(
            "precision.linear float8 finds no linear layers in blocks, with sizes in sixteens and weights in the type "
            "of the products",
            hint="--set precision.compute=bfloat16 casts weights; under autocast they are float32",
        )
    for f, (x, w) in found.items():
        _forward(draft, f, x, w)
        if len(back.get(f, ())) == 2:
            _backward(draft, sorted(back[f]), f, x, w)
    return draft.finish()


def _check_gpu(trace: Trace, cluster: Cluster | None) -> None:
    device = cluster.device if cluster is not None else find_device(trace.origin.gpu) if trace.origin.gpu else None
    known = device.compute_capability if device is not None else None
    if known is not None and tuple(map(int, known.split("."))) < LEAST_CAPABILITY:
        raise UnsupportedError(
            f"precision.linear is float8, but {device.name if device else ''} has compute capability {known}; "
            "products in 8 bits need 8.9 or more",
            hint="leave precision.linear out",
        )


def _layers(trace: Trace) -> dict[int, tuple[int, int]]:
    """Forward ops of linear layers in lists of blocks -> what they multiply, and their weight."""
    types = {module.path: module.type for module in trace.modules}
    found = {}
    for k, op in enumerate(trace.ops):
        if op.phase is not Phase.FORWARD or base(op.name) not in _PRODUCTS or types.get(op.module) != "Linear":
            continue
        *_, x, w = (i for i in op.reads if len(trace.storages[i].shape) > 1)
        weight, out = trace.storages[w], trace.storages[op.writes[0]]
        if weight.kind is not Kind.PARAM or weight.dtype != out.dtype or not any(p.isdigit() for p in op.module):
            continue
        if is_float8_layer(weight.shape[1], weight.shape[0]):
            found[k] = (x, w)
    return found


def _cast(draft: Draft, place: Op, read: int, shape: tuple[int, int], *, is_gradient: bool = False) -> tuple[int, Op]:
    """The op that casts `read`, seen as `shape`, and what it makes; at the place of a product, in its type."""
    count, size = prod(shape), SIZES[draft.trace.storages[place.writes[0]].dtype]
    kind = "float8_e5m2" if is_gradient else "float8_e4m3fn"
    low = draft.add(Storage(id=0, nbytes=count, kind=Kind.TEMP, shape=shape, dtype=kind, module=place.module))
    sizes, wide, scaled, clamped = (size * count, -1), (_WIDE * count, -2), (_WIDE * count, -3), (_WIDE * count, -4)
    order = [sizes, _gone(sizes), *([wide] if size != _WIDE else []), scaled, *([_gone(wide)] if size != _WIDE else [])]
    order += [clamped, (count, low), _gone(clamped), _gone(scaled)]
    moved = count * (3 * size + (size + _WIDE if size != _WIDE else 0) + 5 * _WIDE + 1)
    return low, Op(
        name="aten._to_copy.default", module=place.module, phase=place.phase, reads=(read,), writes=(low,),
        events=tuple(Event(nbytes, 0, i) for nbytes, i in order), moved_bytes=moved, source=place.source,
    )  # fmt: skip


def _gone(made: tuple[int, int]) -> tuple[int, int]:
    return -made[0], made[1]


def _product(draft: Draft, k: int, factors: tuple[int, ...], around: tuple[int, ...], gone: Iterable[int]) -> None:
    """Make op `k` a product of `factors`; `around`: temporaries while it makes its result; `gone` goes after it."""
    op = draft.ops[k]
    copies = [Event(nbytes, 0, -1 - n) for n, nbytes in enumerate(around)]
    made = [e for e in op.events if e.nbytes > 0 and e.storage >= 0]
    left = [e for e in op.events if e.nbytes < 0 and e.storage >= 0]
    low = [Event(-draft.storages[i].nbytes, 0, i) for i in gone]
    is_biased = base(op.name) == "addmm"
    events = (*copies, *(low if is_biased else ()), *made, *(e._replace(nbytes=-e.nbytes) for e in copies))
    moved = sum(draft.storages[i].nbytes for i in (*factors, *op.writes))
    draft.ops[k] = op_like(
        op, name="aten._scaled_mm.default", reads=factors, events=(*events, *(() if is_biased else low), *left),
        moved_bytes=moved,
    )  # fmt: skip


def _forward(draft: Draft, k: int, x: int, w: int) -> None:
    """Casts before the product, which go when it is done; a bias is added afterwards, into another tensor."""
    op, storages = draft.ops[k], draft.trace.storages
    out, shape = storages[op.writes[0]], storages[w].shape
    low_x, cast_x = _cast(draft, op, x, (_rows(out), shape[1]))
    low_w, cast_w = _cast(draft, op, w, (shape[0], shape[1]))
    draft.before.setdefault(k, []).extend([cast_x, cast_w])
    biases = tuple(i for i in op.reads if i not in {x, w})
    _product(draft, k, (low_x, low_w, *biases), (out.nbytes,) if biases else (), [low_x, low_w])


def _backward(draft: Draft, ops: list[int], f: int, x: int, w: int) -> None:
    """The gradient of the input first, then that of the weight; casts of the first stay until both are there."""
    out = draft.trace.storages[draft.trace.ops[f].writes[0]]
    rows, (outputs, inputs) = _rows(out), draft.trace.storages[w].shape
    if w not in draft.ops[ops[0]].reads:
        _swap(draft, *ops)
    g = next(i for i in draft.ops[ops[0]].reads if i != w)
    low: list[int] = []
    for k, i, shape in ((ops[0], w, (outputs, inputs)), (ops[1], x, (rows, inputs))):
        place = draft.ops[k]
        low_g, cast_g = _cast(draft, place, g, (rows, outputs), is_gradient=True)
        low_i, cast = _cast(draft, place, i, shape)
        draft.before.setdefault(k, []).extend([cast_g, cast])
        low += [low_g, low_i]
        turned = (outputs * inputs,) if i == w else (rows * outputs, rows * inputs)
        _product(draft, k, (low_g, low_i), turned, low if i == x else ())


def _swap(draft: Draft, k: int, other: int) -> None:
    """Exchange what two ops make; what is freed after each stays."""
    a, b = draft.ops[k], draft.ops[other]
    for place, mine, its in ((k, a, b), (other, b, a)):
        made = (e for e in its.events if e.nbytes > 0 and e.storage >= 0)
        gone = (e for e in mine.events if e.nbytes < 0 and e.storage >= 0)
        draft.ops[place] = op_like(its, events=(*made, *gone))


def _rows(out: Storage) -> int:
    return out.nbytes // SIZES[out.dtype] // out.shape[-1]
