"""Element types: what the ops compute in, and master weights, gradients and states at rest in wider ones.

    compute bf16_amp, fp16_amp: autocast   bfloat16: the whole model (`whole_type`)   float32, tf32: rates alone
    param   p (bfloat16, computes)  +  master (float32): the update works on it, and casts it back to p
    grad    backward writes gradients in this type, and keeps them in it
    linear  float8: linear layers multiply in 8 bits (`float8`)

This is mixed precision with master weights (Micikevicius et al. 2018; Megatron-LM). Under zero3 parts of parameters
rest in the wider type, and are cast when they are gathered: that is done there (`fsdp`), as is `reduce`, the type
that gradients travel in.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.first_step import MASTER
from dnnmem.estimator.passes.autocast import autocast
from dnnmem.estimator.passes.draft import Draft, Life, lives
from dnnmem.estimator.passes.float8 import in_float8
from dnnmem.estimator.passes.loss_scaling import with_loss_scaling
from dnnmem.estimator.passes.update import element_bytes, gradients, in_type, scale_update, split, states, trained
from dnnmem.estimator.passes.whole_type import in_whole
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like
from dnnmem.estimator.work import COMPUTE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan, Precision

AMP = {"bf16_amp": "bfloat16", "fp16_amp": "float16"}
"""Types that autocast does products in."""
_PLAIN = ("float32", "tf32")
_BY_RULE = (
    "types were put in by rules: casts in the model's own code, and what it refuses, do not show; a step that is "
    "recorded from the model itself has them"
)


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with `plan.precision` at rest; unchanged where it is what was recorded.

    Raises `UnsupportedError` for parameters at rest in a narrower type than they compute in.
    """
    trace = compute_in(trace, plan)
    trace = in_float8(trace, cluster) if plan.precision.linear == "float8" else trace
    wanted = plan.precision
    if plan.splits_parameters:
        return trace
    storages = trace.storages
    found = gradients(storages, shared=True)
    order = {event.storage: k for k, event in enumerate(trace.setup)}  # in which the model has its parameters
    masters = sorted(
        (p for p in found if in_type(storages[p], wanted.param) != storages[p]), key=lambda p: (order.get(p, 0), p)
    )
    grads = {g for mine in found.values() for g in mine if in_type(storages[g], wanted.grad) != storages[g]}
    if not masters and not grads:
        return trace
    for p in masters:
        if wanted.param and element_bytes(wanted.param) < element_bytes(storages[p].dtype):
            raise UnsupportedError(
                f"precision.param is {wanted.param}, narrower than the {storages[p].dtype} that the step computes in",
                hint=f"profile the model in {wanted.param}",
            )
    draft, known = Draft(trace), lives(trace.ops)
    _widen_gradients(draft, grads, wanted.grad)
    cast = _cast_gradients(draft, known, {p: found[p] for p in masters}, wanted)
    copies = _master_weights(draft, masters, wanted.param)
    owned = {(tensor.module, tensor.name) for p in masters for tensor in storages[p].tensors}
    wide = [i for i in states(storages) if (storages[i].module, storages[i].name.split(".")[0]) in owned]
    now = {i: in_type(storages[i], wanted.param) for i in wide}
    now.update({g: in_type(storages[g], wanted.grad) for g in grads})
    made = cast | copies
    sizes = {i: s.nbytes for i, s in now.items()} | {i: _bytes(draft, ids) for i, ids in made.items()}
    shares = {i: Fraction(nbytes, storages[i].nbytes) for i, nbytes in sizes.items() if storages[i].nbytes}
    scale_update(draft, known, shares)
    draft.resize({i: s.nbytes for i, s in now.items()})
    draft.storages.update(now)
    return draft.finish()


def recorded_in(trace: Trace) -> str:
    """What the step was recorded in, in the words of `Precision.compute`."""
    return trace.origin.versions.get(COMPUTE) or computes_in(trace)


def computes_in(trace: Trace) -> str:
    """The same, as parameters and casts show it; `tf32` is as `float32`."""
    narrow = {kind: amp for amp, kind in AMP.items()}
    storages = trace.storages
    params = {i: s for i, s in storages.items() if s.kind is Kind.PARAM}
    types = {s.dtype for s in params.values()} & narrow.keys()
    if types:
        return min(types)
    for op in trace.ops:
        if op.phase is Phase.FORWARD and "_to_copy" in op.name and any(i in params for i in op.reads):
            lower = next((storages[i].dtype for i in op.writes if storages[i].dtype in narrow), None)
            if lower is not None:
                return narrow[lower]
    return "float32"


def compute_in(trace: Trace, plan: Plan) -> Trace:
    """`trace` computing in `plan.precision.compute`; unchanged if it was recorded so.

    Raises `UnsupportedError` if it was recorded in neither that nor float32.
    """
    compute = plan.precision.compute
    if compute is None or trace.origin.versions.get(COMPUTE) == compute:
        return trace
    recorded = recorded_in(trace)
    if recorded == compute and compute != "float32":
        return trace
    if recorded not in _PLAIN:
        raise UnsupportedError(
            f"precision.compute is {compute}, but the step was recorded in {recorded}; only a step in float32 can be "
            "rewritten",
            hint="profile the model in float32, without autocast",
        )
    if compute in _PLAIN:
        return replace(trace, origin=replace(trace.origin, versions={**trace.origin.versions, COMPUTE: compute}))
    if compute in AMP:
        found = autocast(trace, AMP[compute])
        found = with_loss_scaling(found) if compute == "fp16_amp" else found
    else:
        found = in_whole(trace, compute)
    return replace(found, origin=replace(found.origin, notes=(*found.origin.notes, _BY_RULE)))


def alters_training(plan: Plan) -> tuple[str, ...]:
    """What of `plan.precision` changes the numbers that training computes, as `--set` has it."""
    precision = plan.precision
    words = (("compute", precision.compute), ("param", precision.param), ("grad", precision.grad))
    more = (("reduce", precision.reduce), ("linear", precision.linear))
    return tuple(f"precision.{name}={value}" for name, value in (*words, *more) if value not in {None, "float32"})


def _widen_gradients(draft: Draft, grads: Iterable[int], dtype: str | None) -> None:
    """Backward ops move more, or fewer, bytes of the gradients that they write."""
    more = {g: in_type(draft.trace.storages[g], dtype).nbytes - draft.trace.storages[g].nbytes for g in grads}
    for k, op in enumerate(draft.trace.ops):
        if op.phase is Phase.BACKWARD:
            extra = sum(more.get(i, 0) for i in (*op.reads, *op.writes))
            if extra:
                draft.ops[k] = op_like(draft.ops[k], moved_bytes=max(0, op.moved_bytes + extra))


def _cast_gradients(
    draft: Draft, known: Mapping[int, Life], grads: Mapping[int, list[int]], wanted: Precision
) -> dict[int, list[int]]:
    """Before the update each narrow gradient is cast to its master's type, and goes; gradient -> what the update reads.

    Gradients that outlive the step are left as they are.
    """
    ops, storages = draft.trace.ops, draft.trace.storages
    start = next((k for k, op in enumerate(ops) if op.phase is Phase.STEP), len(ops))
    wide: dict[int, list[int]] = {}
    for p, g in ((p, g) for p, mine in grads.items() for g in mine):
        held = in_type(storages[g], wanted.grad)
        cast = in_type(storages[g], wanted.param)
        if cast.nbytes <= held.nbytes or g not in known or known[g].freed < start or g in draft.pinned:
            continue
        parts = {trained(part.tensors[0]): part for part in split(cast)}
        for key in (key for t in storages[p].tensors if (key := (t.module, t.name)) in parts):
            nbytes, new = parts[key].nbytes, draft.add(storage_like(parts[key], kind=Kind.TEMP))
            wide.setdefault(g, []).append(new)
            gone = [Event(-held.nbytes, 0, g)] if len(wide[g]) == len(parts) else []
            draft.before.setdefault(start, []).append(
                Op(
                    name="aten._to_copy.default", module=("<optimizer>",), phase=Phase.STEP, reads=(g,), writes=(new,),
                    events=(Event(nbytes, 0, new), *gone), moved_bytes=nbytes * held.nbytes // cast.nbytes + nbytes,
                )
            )  # fmt: skip
    for k in range(start, len(ops)):
        op = draft.ops[k]
        events = (
            Event(-draft.storages[i].nbytes, e.stream, i) if e.storage in wide else e
            for e in op.events
            for i in wide.get(e.storage, [e.storage])
        )
        reads, writes = _in_place(op.reads, wide), _in_place(op.writes, wide)
        draft.ops[k] = op_like(op, reads=reads, writes=writes, events=tuple(events))
    return wide


def _in_place(ids: Iterable[int], new: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    return tuple(j for i in ids for j in new.get(i, [i]))


def _bytes(draft: Draft, ids: Iterable[int]) -> int:
    return sum(draft.storages[i].nbytes for i in ids)


def _master_weights(draft: Draft, params: list[int], dtype: str | None) -> dict[int, list[int]]:
    """Copies that the update works on, and the cast back at its end."""
    copies: dict[int, list[int]] = {}
    for p in params:
        for part in split(in_type(draft.trace.storages[p], dtype)):
            master = storage_like(part, kind=Kind.OPTIMIZER, name=f"{part.name}{MASTER}")
            copies.setdefault(p, []).append(draft.add(master))
    if not copies:
        return copies
    masters = _in_place(copies, copies)
    draft.pinned.update(masters)
    for k, op in enumerate(draft.ops):
        if op.phase is Phase.STEP and any(i in copies for i in (*op.reads, *op.writes)):
            draft.ops[k] = op_like(op, reads=_in_place(op.reads, copies), writes=_in_place(op.writes, copies))
    moved = _bytes(draft, copies) + _bytes(draft, masters)
    last = len(draft.ops) - 1
    cast = Op(
        name="aten._foreach_copy_.default", module=("<optimizer>",), phase=Phase.STEP, reads=masters,
        writes=tuple(copies), moved_bytes=moved,
    )  # fmt: skip
    draft.after.setdefault(last, []).append(cast)
    return copies
