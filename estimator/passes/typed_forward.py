"""The forward pass in other types: casts before ops that want them, results in the types that follow.

Who wants what is in `Rules`: autocast's lists, or what a model does that was cast as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dnnmem.estimator.passes.autocast_attention import forward as run_forward
from dnnmem.estimator.passes.autocast_attention import half_kernel
from dnnmem.estimator.passes.autocast_lists import BATCH_NORMS, STATISTICS, Policy, base
from dnnmem.estimator.passes.typed_draft import FLOAT, LOSS, TypedDraft
from dnnmem.estimator.trace import Kind, Op, Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decides types."""

    policy: Callable[[TypedDraft, int, Op], Policy]
    """Of an op of the model, by its index."""
    is_kept: Callable[[Storage], bool]
    """True for what is cast once, and stays so until the forward pass is over."""
    returns: Callable[[TypedDraft, int, Op], bool]
    """True if the program casts to float32 before the op, and its result back."""


def forward(d: TypedDraft, rules: Rules, k: int, op: Op) -> None:
    """Casts before op `k`, and the types of what it makes."""
    floats = [i for i in op.reads if d.is_float(i)]
    policy = rules.policy(d, k, op) if k <= d.last and op.module != LOSS else Policy.PROMOTE
    d.policies[k] = policy
    wanted = {Policy.LOWER: d.lower, Policy.FLOAT32: FLOAT}.get(policy)
    if policy is Policy.WIDEST or (policy is Policy.RESULT and "softmax" in op.name and d.lower == "bfloat16"):
        wanted = d.widest(floats) if policy is Policy.WIDEST else FLOAT
    if rules.returns(d, k, op) and d.lower in map(d.type, floats):
        _between_casts(d, rules, k, op, floats)
        return
    if wanted is not None:
        new = {i: _cast(d, rules, k, i, wanted) for i in _in_order(op, floats) if d.type(i) != wanted}
        if new:
            d.read(k, new)
    result = FLOAT if policy is Policy.RESULT else wanted or promoted(d, op, floats)
    statistics = base(op.name) in STATISTICS
    for n, i in enumerate(op.writes):
        if statistics and n:
            d.statistics.add(i)
        elif d.known[i].made == k:
            d.set(i, result)
    if wanted == d.lower and "_attention" in op.name:
        d.kernels[k] = half_kernel(d.trace, op)
        if d.kernels[k] in {"flash", "cudnn"}:
            d.sizes.update(run_forward(d.draft, k, d.kernels[k]))
            _leave_order(d, k, op)


def _between_casts(d: TypedDraft, rules: Rules, k: int, op: Op, floats: Sequence[int]) -> None:
    """The program casts what it reads to float32, and the result back."""
    d.read(k, {i: _cast(d, rules, k, i, FLOAT) for i in floats if d.type(i) == d.lower})
    for i in op.writes:
        if d.known[i].made == k and d.trace.storages[i].dtype in {FLOAT, "complex64"}:
            recorded = d.trace.storages[i]
            d.types[i] = d.lower
            wide = d.made_as(k, i, recorded.dtype)
            is_saved = recorded.saved and recorded.dtype == FLOAT
            if is_saved:
                d.between[k, i] = wide
                d.ends[wide] = k
            cast = d.cast_op(op, op.phase, wide, i, gone=None if is_saved else wide)
            d.draft.after.setdefault(k, []).append(cast)


def _leave_order(d: TypedDraft, k: int, op: Op) -> None:
    """Results of cuDNN lie as the queries do: what lies (T, B, H * D) needs no copy into this order."""
    (b, h, t, width), queries = d.trace.storages[op.writes[0]].shape, d.trace.storages[op.reads[0]].shape
    follower = d.ops[k + 1]
    if d.kernels[k] != "cudnn" or queries[-3:] != (t, b, h * width) or follower.name != "aten.clone.default":
        return
    if follower.reads == op.writes[:1]:
        d.same[follower.writes[0]] = op.writes[0]


def promoted(d: TypedDraft, op: Op, floats: Sequence[int]) -> str:
    """The type that an op which casts nothing works in; statistics do not count."""
    floats = [i for i in floats if i not in d.statistics] or floats
    if base(op.name) in BATCH_NORMS and floats:
        return d.type(floats[0])
    whole = [i for i in floats if d.draft.storages[i].shape] or floats
    return d.widest(whole) if whole else FLOAT


def _cast(d: TypedDraft, rules: Rules, k: int, i: int, dtype: str) -> int:
    """The cast of `i` that op `k` reads, made just before it unless it is a parameter's that is there."""
    if i in d.cached:
        new = d.cached[i]
    else:
        new = d.copy(k, i, dtype, Kind.ACTIVATION)
        if rules.is_kept(d.trace.storages[i]):
            d.cached[i] = new
            d.ends[new] = d.last
    d.casts[k, i] = new
    d.ends[new] = max(d.ends.get(new, -1), k)
    return new


def _in_order(op: Op, floats: Sequence[int]) -> Sequence[int]:
    """Arguments are cast from the last to the first; a product with a bias reads it first."""
    if base(op.name) == "addmm" and len(floats) == 3:
        return (floats[0], floats[2], floats[1])
    return floats[::-1]
