"""Loss scaling for float16: the scale rests on the GPU, and gradients are unscaled and checked before the update."""

from __future__ import annotations

from dnnmem.estimator.passes.draft import Draft, made_storage
from dnnmem.estimator.trace import Kind, Op, Phase, Trace

_SCALARS = ("scale", "growth")
"""What GradScaler keeps, one element each."""


def with_loss_scaling(trace: Trace) -> Trace:
    """`trace` with the ops of torch's GradScaler: one over all gradients, in place."""
    at = next((k for k, op in enumerate(trace.ops) if op.phase is Phase.STEP), None)
    if at is None:
        return trace
    draft = Draft(trace)
    kept = [draft.add(made_storage(4, Kind.BUFFER, f"grad_scaler.{name}")) for name in _SCALARS]
    draft.pinned.update(kept)
    reads = dict.fromkeys(i for op in trace.ops[at:] for i in op.reads)
    gradients = tuple(i for i in reads if trace.storages[i].kind is Kind.GRAD)
    check = Op(
        name="aten._amp_foreach_non_finite_check_and_unscale_.default", module=("<optimizer>",), phase=Phase.STEP,
        reads=gradients, writes=gradients, moved_bytes=2 * sum(trace.storages[i].nbytes for i in gradients),
    )  # fmt: skip
    draft.before.setdefault(at, []).append(check)
    return draft.finish()
