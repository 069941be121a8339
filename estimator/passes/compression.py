"""Activation compression: what autograd saves is kept as codes, bits or sums of rows, and made again for its gradient.

    forward    x = op(..)   encode x -> codes, low, step   ... free x when the forward pass is done with it
    backward   decode codes, low, step -> x'   op's gradient with x'   free x'

ActNN (Chen et al. 2021), Gist's masks (Jain et al. 2018) and projections of linear layers' inputs (Bershatsky et al.
2022), as hooks for saved tensors do it: what is saved as an op's input is encoded before that op, its output after it;
a gradient holds what it unpacked until it is done. What is computed again was never saved: only inputs of such blocks
are encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dnnmem.estimator.encoding import (
    DECODE,
    ENCODE,
    MIN_BYTES,
    Cost,
    Encoding,
    Shape,
    decode,
    decoded_bytes,
    encode,
    kept,
)
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.draft import Draft, Life, back_uses, lives
from dnnmem.estimator.passes.remat import BATCHED, PRODUCTS
from dnnmem.estimator.passes.remat_frees import is_cast, let_go
from dnnmem.estimator.plan import Compression
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

_LOSS = ("<loss>",)
_POOL, _RELU = "aten.max_pool2d_with_indices_backward.default", "aten.threshold_backward.default"
_LOSSES = frozenset(
    f"aten.{name}.default"
    for name in ("_log_softmax_backward_data", "nll_loss_backward", "nll_loss2d_backward")
)  # fmt: skip
_OF_RESULTS = {
    "aten._softmax_backward_data.default": "aten._softmax.default",
    "aten.tanh_backward.default": "aten.tanh.default",
    "aten.sigmoid_backward.default": "aten.sigmoid.default",
    "aten.native_dropout_backward.default": "aten.native_dropout.default",
    _POOL: "aten.max_pool2d_with_indices.default",
}
"""Gradients that use what the op made."""
_SAVE_NOTHING = frozenset(
    f"aten.{name}"
    for name in ("add.Tensor", "add_.Tensor", "sub.Tensor", "cat.default", "clone.default", "_to_copy.default",
                 "copy_.default", "stack.default", "sum.dim_IntList", "mean.dim", "roll.default")
)  # fmt: skip
_PAIRS = PRODUCTS | BATCHED | {"aten.mul.Tensor"}
"""Gradients of both operands, made by one node of autograd."""
_POWER = ("aten.pow.Tensor_Scalar", "aten.mul.Scalar", "aten.mul.Tensor")
"""The gradient of a power."""
_FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2}


def check_fits(plan: Plan) -> None:
    """Raise `UnsupportedError` for what compression does not go with."""
    policy, asked = plan.remat.policy, "compression.bits, masks and projection"
    if policy not in ("none", "full", "every", "segments"):
        raise UnsupportedError(
            f"{asked} cannot be had with remat.policy {policy}: what it keeps of a block is not saved by autograd",
            hint="--set remat.policy=full, or none",
        )
    if policy != "none" and plan.compression.projection is not None:
        raise UnsupportedError(
            f"compression.projection is for inputs of linear layers, which remat.policy {policy} does not save",
            hint="--set remat.policy=none",
        )
    if plan.offload.activations != "none":
        raise UnsupportedError(
            f"{asked} cannot be had with offload.activations {plan.offload.activations}: what travels stays as it is",
            hint="--set offload.activations=none",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What encodings are chosen by."""

    trace: Trace
    plan: Compression
    again: bool
    """Whether blocks are computed again."""
    packed: frozenset[tuple[str, ...]]
    """Modules that multiply within one function of torch's, which nothing outside sees."""


@dataclass(slots=True, kw_only=True)
class _Use:
    """Backward ops of one node of autograd, which unpacks a storage once."""

    first: int
    last: int
    encoding: Encoding | None
    """How it is kept for this node; None = as it is."""


@dataclass(slots=True, kw_only=True)
class _Saved:
    """A storage that is encoded for some of its uses."""

    storage: Storage
    life: Life
    shape: Shape
    uses: list[_Use] = field(default_factory=list)
    """In order."""


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with what is saved encoded as `plan.compression` says. Raises as `check_fits` does."""
    del cluster
    if plan.compression == Compression():
        return trace
    check_fits(plan)
    draft, known = Draft(trace), lives(trace.ops)
    held = {i: (k, n) for k, op in enumerate(trace.ops) for n, i in enumerate(op.releases)}
    gone = {}
    for saved in _all_saved(trace, known, plan):
        if not _enter(draft, saved):
            last = max(k for k in saved.life.uses if trace.ops[k].phase is Phase.FORWARD)
            gone[saved.storage.id] = max((last, -1), held.get(saved.storage.id, (-1, -1)))
    for i in sorted(gone, key=lambda i: gone[i]):
        if known[i].made == gone[i][0]:  # no variable of the program's has ever held it
            _free_first(draft, gone[i][0], i)
        else:
            let_go(draft, i, gone[i][0])
    for k, behind in draft.after.items():
        _move_frees(draft, k, behind)
    return draft.finish()


def _all_saved(trace: Trace, known: dict[int, Life], plan: Plan) -> list[_Saved]:
    """Storages that are encoded, in the order in which they are made."""
    backward = {k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD}
    packed = frozenset(module.path for module in trace.modules if module.type == "MultiheadAttention")
    step = _Step(trace=trace, plan=plan.compression, again=plan.remat.policy != "none", packed=packed)
    found = []
    for i, life in known.items():
        storage = trace.storages[i]
        if not storage.saved or i in trace.pinned or storage.nbytes < MIN_BYTES or life.made < 0:
            continue
        made = trace.ops[life.made]
        if made.phase is not Phase.FORWARD or made.module == _LOSS or is_cast(trace, life.made):
            continue
        uses = _uses(step, storage, life, back_uses(storage, life, backward))
        if any(use.encoding for use in uses):
            found.append(_Saved(storage=storage, life=life, shape=_shape(trace, storage, life), uses=uses))
    return sorted(found, key=lambda saved: saved.life.made)


def _uses(step: _Step, storage: Storage, life: Life, back: Sequence[int]) -> list[_Use]:
    ops = step.trace.ops
    again = {(ops[k].name, ops[k].module, ops[k].reads) for k in life.uses if ops[k].phase is Phase.FORWARD}
    if step.again and any((ops[k].name, ops[k].module, ops[k].reads) in again for k in back):
        encoding = _codes(storage, step.plan)  # the input of what is computed again
        return [_Use(first=back[0], last=back[-1], encoding=encoding)] if back else []
    found: list[_Use] = []
    for k in back:
        first, last = _node(ops, k)
        if found and found[-1].last >= first:
            found[-1].last = max(found[-1].last, last)
        else:
            found.append(_Use(first=first, last=last, encoding=_encoding(step, storage, life, k)))
    return found


def _node(ops: Sequence[Op], k: int) -> tuple[int, int]:
    """First and last op of the autograd node of op `k`: a product's makes both of its gradients."""

    def together(a: int, b: int) -> bool:
        one, other = ops[a], ops[b]
        same = one.name == other.name and one.module == other.module and one.phase is other.phase
        return same and one.name in _PAIRS and bool({*one.reads} & {*other.reads})

    if k and together(k - 1, k):
        return k - 1, k
    if tuple(op.name for op in ops[k : k + 3]) == _POWER:
        return k, k + 2
    return (k, k + 1) if k + 1 < len(ops) and together(k, k + 1) else (k, k)


def _codes(storage: Storage, plan: Compression) -> Encoding | None:
    if plan.bits is None or storage.dtype not in _FLOATS:
        return None
    return Encoding(kind="codes", bits=plan.bits, group=plan.group)


def _encoding(step: _Step, storage: Storage, life: Life, k: int) -> Encoding | None:
    """How a storage is kept for its backward op `k`; None = as it is."""
    op, made, plan = step.trace.ops[k], step.trace.ops[life.made], step.plan
    if op.module == _LOSS or op.name in _LOSSES:
        return None
    if storage.dtype not in _FLOATS or (op.name == _POOL and plan.masks):
        return _exact(storage.dtype, op.name) if plan.masks else None
    if is_attention(made.name) and storage.id != made.writes[0]:
        return None
    if op.name == _RELU and (plan.masks or plan.bits):
        return Encoding(kind="sign")
    linear = op.name in PRODUCTS and op.module not in step.packed and _linear(step.trace, storage.id, life) is not None
    if plan.projection is not None and linear:
        return Encoding(kind="rows", share=plan.projection)
    statistic = storage.shape[-1:] == (1,) and op.name not in PRODUCTS | BATCHED  # einsum: what it copied has a 1 more
    return None if statistic else _codes(storage, plan)


def _exact(dtype: str, gradient: str) -> Encoding | None:
    """What loses nothing: truth values, max-pooling's places and its input, of which the shape counts."""
    if dtype == "bool":
        return Encoding(kind="bool")
    return Encoding(kind="window" if dtype == "int64" else "shape") if gradient == _POOL else None


def _linear(trace: Trace, i: int, life: Life) -> Op | None:
    """The first linear layer that reads a storage."""
    forward = (trace.ops[k] for k in life.uses if trace.ops[k].phase is Phase.FORWARD)
    return next((op for op in forward if op.name in PRODUCTS and i in op.reads and op.flops), None)


def _shape(trace: Trace, storage: Storage, life: Life) -> Shape:
    item = _FLOATS.get(storage.dtype, 8 if storage.dtype == "int64" else 1)
    elements, linear = storage.nbytes // item, _linear(trace, storage.id, life)
    columns = 1
    if linear is not None:
        out = trace.storages[linear.writes[0]]
        columns = linear.flops // 2 // (out.nbytes // _FLOATS.get(out.dtype, 4))
    edges = (storage.shape[-2], storage.shape[-1]) if len(storage.shape) > 1 else (1, 1)
    return Shape(elements=elements, item_bytes=item, columns=columns, edges=edges)


def _enter(draft: Draft, saved: _Saved) -> bool:
    """Encode a storage, and decode it for each use; True if others need it as it was, so that it stays."""
    i, life, ops = saved.storage.id, saved.life, draft.trace.ops
    plain = [use for use in saved.uses if use.encoding is None]
    forward = [k for k in life.uses if ops[k].phase is Phase.FORWARD]
    for encoding in dict.fromkeys(use.encoding for use in saved.uses if use.encoding):
        mine = [use for use in saved.uses if use.encoding == encoding]
        parts = _encode(draft, saved, encoding, _place(ops, saved, mine, forward))
        if saved.uses[-1] is mine[-1]:
            _free_instead(draft, life.freed, i, parts.values())
        else:
            for part in parts.values():
                draft.free(mine[-1].last, part)
        for use in mine:
            _decode(draft, saved, encoding, parts, use)
    if not plain:
        draft.storages[i] = storage_like(saved.storage, kind=Kind.TEMP, saved=False)
    elif saved.uses[-1] is not plain[-1]:
        draft.free(plain[-1].last, i)
    return bool(plain)


def _free_instead(draft: Draft, k: int, i: int, parts: Iterable[int]) -> None:
    """Free parts where op `k` freed the whole."""
    op, freed = draft.ops[k], [Event(-draft.storages[part].nbytes, 0, part) for part in parts]
    at = next(at for at, event in enumerate(op.events) if event.storage == i and event.nbytes < 0)
    draft.ops[k] = op_like(op, events=(*op.events[:at], *freed, *op.events[at + 1 :]))


def _free_first(draft: Draft, k: int, i: int) -> None:
    """Free what only op `k` holds: when it is done, before what it was given goes."""
    op = draft.ops[k]
    last = _last_call(op.events)
    event = Event(-draft.storages[i].nbytes, 0, i)
    draft.ops[k] = op_like(op, events=(*op.events[: last + 1], event, *op.events[last + 1 :]))


def _move_frees(draft: Draft, k: int, behind: list[Op]) -> None:
    """What the program lets go of after op `k`, it does when the op's outputs are encoded."""
    events = draft.ops[k].events
    at = _last_call(events)
    draft.ops[k] = op_like(draft.ops[k], events=events[: at + 1])
    behind[-1] = op_like(behind[-1], events=(*behind[-1].events, *events[at + 1 :]))


def _last_call(events: Sequence[Event]) -> int:
    """Index of the last event of the op itself: what follows are frees of others' storages."""
    return max((at for at, event in enumerate(events) if event.nbytes > 0 or event.storage < 0), default=-1)


def _place(ops: Sequence[Op], saved: _Saved, uses: Sequence[_Use], forward: Sequence[int]) -> tuple[int, bool]:
    """The forward op at which a storage is saved, and whether before it runs."""
    i = saved.storage.id
    written = max(k for k in forward if i in ops[k].writes or k == saved.life.made)
    gradients = {ops[k].name for use in uses for k in range(use.first, use.last + 1)}
    if any(_OF_RESULTS.get(name) == ops[written].name or name == _RELU for name in gradients):
        return written, False
    if is_attention(ops[written].name):
        return written, False
    readers = (k for k in forward if k > written and ops[k].name not in _SAVE_NOTHING)
    first = next(readers, None)
    return (written, False) if first is None else (first, True)


def _encode(draft: Draft, saved: _Saved, encoding: Encoding, place: tuple[int, bool]) -> dict[str, int]:
    """Put the encoding beside a forward op; the storages that it makes, by name."""
    at, before = place
    module = draft.trace.ops[at].module
    parts: dict[str, int] = {}
    for part in kept(encoding, saved.shape):
        dtype = saved.storage.dtype if part.dtype == "raw" else part.dtype
        new = Storage(
            id=0, nbytes=part.nbytes, kind=Kind.ACTIVATION, shape=(part.nbytes // _FLOATS.get(dtype, 1),), dtype=dtype,
            module=module, name=part.name, saved=True,
        )  # fmt: skip
        parts[part.name] = draft.add(new)
    if parts:
        cost = encode(encoding, saved.shape)
        op = Op(
            name=ENCODE + encoding.kind, module=module, phase=Phase.FORWARD, reads=(saved.storage.id,),
            writes=tuple(parts.values()), events=_events(cost, parts), moved_bytes=cost.moved_bytes,
        )  # fmt: skip
        (draft.before if before else draft.after).setdefault(at, []).append(op)
    return parts


def _decode(draft: Draft, saved: _Saved, encoding: Encoding, parts: dict[str, int], use: _Use) -> None:
    """Make the storage again for a node of autograd, which lets go of it when it is done."""
    nbytes = decoded_bytes(encoding, saved.shape)
    dtype = "bool" if encoding.kind == "sign" else saved.storage.dtype
    new = draft.add(storage_like(saved.storage, nbytes=nbytes, dtype=dtype, kind=Kind.TEMP, saved=False))
    cost = decode(encoding, saved.shape)
    op = Op(
        name=DECODE + encoding.kind, module=draft.trace.ops[use.first].module, phase=Phase.BACKWARD,
        reads=tuple(parts.values()), writes=(new,), events=_events(cost, {**parts, "out": new}),
        moved_bytes=cost.moved_bytes,
    )  # fmt: skip
    draft.before.setdefault(use.first, []).append(op)
    for k in range(use.first, use.last + 1):
        draft.ops[k] = renamed(draft.ops[k], {saved.storage.id: new})
    _free_first(draft, use.last, new)


def _events(cost: Cost, named: dict[str, int]) -> tuple[Event, ...]:
    """Calls of the allocator with storages for names; other names are temporaries."""
    others = {name: -n for n, name in enumerate(dict.fromkeys(n for _, n in cost.calls if n not in named), start=1)}
    ids = {**named, **others}
    return tuple(Event(nbytes, 0, ids[name]) for nbytes, name in cost.calls)
