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
from dnnmem.estimator.passes.draft import Draft, Life, lives, resized
from dnnmem.estimator.passes.float8 import in_float8
from dnnmem.estimator.passes.loss_scaling import with_loss_scaling
from dnnmem.estimator.passes.update import element_bytes, gradients, in_type, scale_update, states
from dnnmem.estimator.passes.whole_type import in_whole
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like
from dnnmem.estimator.work import COMPUTE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
    trained = gradients(storages)
    order = {event.storage: k for k, event in enumerate(trace.setup)}  # in which the model has its parameters
    masters = sorted(
        (p for p in trained if in_type(storages[p], wanted.param) != storages[p]), key=lambda p: (order.get(p, 0), p)
    )
    grads = [g for mine in trained.values() for g in mine if in_type(storages[g], wanted.grad) != storages[g]]
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
    cast = _cast_gradients(draft, known, [trained[p] for p in masters], wanted)
    copies = _master_weights(draft, masters, wanted.param)
    owned = {(storages[p].module, storages[p].name) for p in masters}
    wide = [i for i in states(storages) if (storages[i].module, storages[i].name.split(".")[0]) in owned]
    now = {i: in_type(storages[i], wanted.param) for i in wide}
    now.update({g: in_type(storages[g], wanted.grad) for g in grads})
    shares = {i: Fraction(s.nbytes, storages[i].nbytes) for i, s in (now | cast).items() if storages[i].nbytes}
    shares.update({p: Fraction(draft.storages[m].nbytes, storages[p].nbytes) for p, m in copies.items()})
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


def _widen_gradients(draft: Draft, grads: list[int], dtype: str | None) -> None:
    """Backward ops move more, or fewer, bytes of the gradients that they write."""
    more = {g: in_type(draft.trace.storages[g], dtype).nbytes - draft.trace.storages[g].nbytes for g in grads}
    for k, op in enumerate(draft.trace.ops):
        if op.phase is Phase.BACKWARD:
            extra = sum(more.get(i, 0) for i in (*op.reads, *op.writes))
            if extra:
                draft.ops[k] = op_like(draft.ops[k], moved_bytes=max(0, op.moved_bytes + extra))


def _cast_gradients(
    draft: Draft, known: Mapping[int, Life], grads: Iterable[list[int]], wanted: Precision
) -> dict[int, Storage]:
    """Before the update each narrow gradient is cast to its master's type, and goes; gradient -> what the update reads.

    Gradients that outlive the step are left as they are.
    """
    ops, storages = draft.trace.ops, draft.trace.storages
    start = next((k for k, op in enumerate(ops) if op.phase is Phase.STEP), len(ops))
    wide: dict[int, Storage] = {}
    for g in (g for mine in grads for g in mine):
        held = in_type(storages[g], wanted.grad)
        cast = in_type(storages[g], wanted.param)
        if cast.nbytes <= held.nbytes or g not in known or known[g].freed < start or g in draft.pinned:
            continue
        new = draft.add(storage_like(cast, kind=Kind.TEMP))
        wide[g] = draft.storages[new]
        draft.before.setdefault(start, []).append(
            Op(
                name="aten._to_copy.default", module=("<optimizer>",), phase=Phase.STEP, reads=(g,), writes=(new,),
                events=(Event(cast.nbytes, 0, new), Event(-held.nbytes, 0, g)), moved_bytes=held.nbytes + cast.nbytes,
            )
        )  # fmt: skip
    for k in range(start, len(ops)):
        op = renamed(draft.ops[k], {g: s.id for g, s in wide.items()})
        sizes = {s.id: s.nbytes for s in wide.values()}
        draft.ops[k] = op_like(op, events=resized(op.events, sizes))
    return wide


def _master_weights(draft: Draft, params: list[int], dtype: str | None) -> dict[int, int]:
    """Copies that the update works on, and the cast back at its end."""
    copies: dict[int, int] = {}
    for p in params:
        master = storage_like(in_type(draft.trace.storages[p], dtype), kind=Kind.OPTIMIZER)
        copies[p] = draft.add(storage_like(master, name=f"{master.name}{MASTER}"))
    if not copies:
        return copies
    draft.pinned.update(copies.values())
    for k, op in enumerate(draft.ops):
        if op.phase is Phase.STEP and any(i in copies for i in (*op.reads, *op.writes)):
            reads, writes = (tuple(copies.get(i, i) for i in ids) for ids in (op.reads, op.writes))
            draft.ops[k] = op_like(op, reads=reads, writes=writes)
    moved = sum(draft.storages[i].nbytes for pair in copies.items() for i in pair)
    last = len(draft.ops) - 1
    cast = Op(
        name="aten._foreach_copy_.default", module=("<optimizer>",), phase=Phase.STEP, reads=tuple(copies.values()),
        writes=tuple(copies), moved_bytes=moved,
    )  # fmt: skip
    draft.after.setdefault(last, []).append(cast)
    return copies
