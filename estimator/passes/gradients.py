"""Gradient communication: less than whole gradients goes over the wire, after the sharding pass has made buckets.

    ddp          backward .. copy in b0 | all_reduce b0 ..                              .. copy out b0 | update
    compressed   backward .. copy in b0 | encode | what is sent | decode | ..           .. copy out b0 | update
    local_steps  backward .. copy in b0 | ..             .. copy out b0 | update | all_reduce parameters / steps

The ops are those of `profilers/apply/gradient_hooks.py`, one by one. They run on a stream of their own, whose memory
no other serves, and take time from the backward pass, as kernels share a GPU; only the copy out waits for what is sent.
What waits for the next step rests beside the buckets.

    wire bytes, n elements, N ranks    all_reduce 8 n (of 4-byte elements)     powersgd 8 r (rows + columns)
    16 bits 4 n    topk, dgc 8 N density n    codes 2 bits n / 8: a part to each rank, which averages it, then to all
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.gradient_sizes import GRADIENTS
from dnnmem.estimator.passes.draft import Draft, made_storage
from dnnmem.estimator.passes.gradients_ops import Bucket, sent
from dnnmem.estimator.passes.optimizer_recorded import recorded_update
from dnnmem.estimator.passes.update import element_bytes, gradients
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

_COPY, _SUM = "dnnmem.copy_in.", "dnnmem.all_reduce."
_STREAM = 1
"""Of all buckets."""
_NEEDS = {"onebit": ("adamw", "for_loop", "foreach"), "dgc": ("sgd", "for_loop", "foreach", "fused")}
"""Compressions that take a part of the optimizer's work: its name, and kernels."""


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """One rank's step under `plan.gradients`; unchanged for one rank.

    Raises `UnsupportedError` where a compression goes with another optimizer than the step has,
    or stages of a pipeline, or parts of a sequence, share a model.
    """
    del cluster
    wanted = plan.gradients
    if (wanted.compression == "none" and wanted.local_steps == 1) or plan.mesh.data_ranks == 1:
        return trace
    if wanted.local_steps > 1:
        return _averaged(trace, plan)
    if plan.mesh.world_size != plan.mesh.data_ranks * plan.mesh.tp:
        raise UnsupportedError(
            f"gradients.compression is {wanted.compression}, but pp {plan.mesh.pp} * cp {plan.mesh.cp} ranks share one "
            "model: hooks over its stages, or over parts of sequences, are not predicted yet",
            hint="leave pp and cp 1, or gradients.compression none",
        )
    _check_optimizer(trace, plan)
    draft = Draft(trace)
    if wanted.compression == "powersgd":
        _add_workspace(draft)
    if wanted.compression in ("float16", "bfloat16"):
        _round_at_first(draft, wanted.compression)
    inside: dict[int, tuple[int, ...]] = {}
    for k, op in enumerate(trace.ops):
        if op.name.startswith(_COPY):
            inside[op.writes[0]] = inside.get(op.writes[0], ()) + op.reads
        elif op.name.startswith(_SUM) and op.reads[0] in inside:
            bucket = _bucket(trace, inside[op.reads[0]], op, plan)
            ops = [_beside(emitted) for emitted in sent(draft, wanted, bucket)]
            draft.ops[k], draft.after[k] = ops[0], ops[1:]
    return draft.finish()


def _add_workspace(draft: Draft) -> None:
    """Products on another stream have a workspace of their own, as large as the others."""
    spaces = [s for i, s in draft.storages.items() if i in draft.pinned and s.kind is Kind.TEMP]
    if spaces:
        draft.pinned.add(draft.add(max(spaces, key=lambda s: s.nbytes)))


def _round_at_first(draft: Draft, dtype: str) -> None:
    """The first step has one bucket for all gradients, which it rounds too, unless they are of that type already."""
    whole = [s.nbytes for s in draft.storages.values() if s.kind is Kind.COMM and s.name == "first bucket"]
    types = {draft.storages[g].dtype for op in draft.trace.ops if op.name.startswith(_COPY) for g in op.reads}
    if whole and types != {dtype}:
        nbytes = whole[0] * element_bytes(dtype) // max(map(element_bytes, types))
        half = draft.add(made_storage(nbytes, Kind.COMM, "first bucket in 16 bits"))
        draft.start = [Event(nbytes, _STREAM, half), Event(-nbytes, _STREAM, half)]


def _bucket(trace: Trace, grads: tuple[int, ...], op: Op, plan: Plan) -> Bucket:
    """What one sum of the sharding pass is of."""
    [flat] = op.reads
    dtype = trace.storages[grads[0]].dtype
    return Bucket(
        flat=flat, gradients=grads, elements=trace.storages[flat].nbytes // element_bytes(dtype), dtype=dtype,
        ranks=plan.mesh.data_ranks, axis=op.name.rpartition(".")[2],
    )  # fmt: skip


def _beside(op: Op) -> Op:
    """An op of a hook: part of the backward pass, with memory of its stream."""
    events = tuple(Event(e.nbytes, _STREAM, e.storage) for e in op.events)
    return op_like(op, module=GRADIENTS, phase=Phase.BACKWARD, events=events)


def _check_optimizer(trace: Trace, plan: Plan) -> None:
    name, *kernels = _NEEDS.get(plan.gradients.compression, ("",))
    if not name:
        return
    found = recorded_update(trace)
    if found.name != name or found.kernel not in kernels:
        raise UnsupportedError(
            f"gradients.compression {plan.gradients.compression} takes a part of the work of {name} "
            f"({' or '.join(kernels)}), but the step's optimizer is {found.name or 'another'} ({found.kernel})",
            hint=f"--set optimizer.name={name} --set optimizer.kernel={kernels[-1]}",
        )


def _averaged(trace: Trace, plan: Plan) -> Trace:
    """No sums of gradients; each step does its part of averaging the parameters, in place."""
    ops = [op for op in trace.ops if not (op.name.startswith(_SUM) and op.phase is Phase.BACKWARD)]
    axes = {op.name.rpartition(".")[2] for op in trace.ops if op.name.startswith(_SUM)}
    params = tuple(gradients(trace.storages))
    nbytes = sum(trace.storages[i].nbytes for i in params) // plan.gradients.local_steps
    for axis in axes:
        mean = Op(
            name="aten._foreach_div_.Scalar", module=GRADIENTS, phase=Phase.STEP, reads=params, writes=params,
            moved_bytes=2 * nbytes,
        )  # fmt: skip
        send = replace(mean, name=f"{_SUM}{axis}", lane=Lane.COMM, moved_bytes=nbytes)
        ops += [mean, send]
    return replace(trace, ops=tuple(ops))
