"""A step recorded in float32 as the same model runs it after `model.to(bfloat16)`: parameters and all that follows.

    float32    p, b, x          norm -> y, mean, rstd     mm      loss     gradients    optimizer states
    bfloat16   p', b', x -> x'  norm -> y', mean, rstd    mm'     loss     gradients'   states'

Floating inputs are cast when they come in, and outputs to float32 when they go out: losses see no rounding. Statistics
of norms stay in float32; so does what models of `transformers` compute there whatever they are given: powers in their
own norms, and softmax.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial

from dnnmem.estimator.passes.autocast import makes_complex, retyped
from dnnmem.estimator.passes.autocast_lists import Policy, base, policy_of
from dnnmem.estimator.passes.typed_draft import FLOAT, TypedDraft
from dnnmem.estimator.passes.typed_forward import Rules
from dnnmem.estimator.passes.update import SIZES, scale_update, states
from dnnmem.estimator.trace import Kind, Op, Phase, Storage, Trace

Paths = frozenset[tuple[str, ...]]


def in_whole(trace: Trace, lower: str) -> Trace:
    """`trace`, recorded in float32, of a model that is cast to `lower`."""
    d = TypedDraft(trace, lower)
    _cast_at_rest(d)
    own = frozenset(m.path for m in trace.modules if "transformers" in m.source)
    rules = Rules(policy=partial(_policy, own), is_kept=_is_input, returns=partial(_returns, own))
    return retyped(d, rules)


def _cast_at_rest(d: TypedDraft) -> None:
    """Parameters, buffers, gradients, and the optimizer's states with what its update makes of them."""
    storages, kept = d.trace.storages, {Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER}
    counters = {i for i, s in storages.items() if s.kind is Kind.OPTIMIZER} - {*states(storages)}
    for i, s in storages.items():
        is_kept = s.kind in kept or (s.kind is Kind.BUFFER and s.name)
        if is_kept and s.dtype == FLOAT and i not in counters:
            d.types[i] = d.lower
    scale_update(d.draft, d.known, {i: Fraction(SIZES[d.lower], SIZES[FLOAT]) for i in d.types})
    for op in d.ops:
        if op.phase is Phase.STEP:
            for i in op.writes:
                if storages[i].dtype == FLOAT and d.draft.storages[i].nbytes != storages[i].nbytes:
                    d.types[i] = d.lower


def _is_input(storage: Storage) -> bool:
    return storage.kind is Kind.INPUT


def _policy(own: Paths, d: TypedDraft, _: int, op: Op) -> Policy:
    """Products need one type; nothing else is cast, except inputs, and where a model's code says so."""
    short, read = base(op.name), [d.trace.storages[i] for i in op.reads if i in d.trace.storages]
    if op.module in own and short == "pow":
        return Policy.FLOAT32
    if op.module in own and short in _FACTORIES:
        return Policy.LOWER
    weighs = short == "mul" and any(s.kind is Kind.PARAM for s in read)
    if (op.module in own and weighs) or any(s.kind is Kind.INPUT and s.dtype == FLOAT for s in read):
        return Policy.LOWER
    return Policy.LOWER if policy_of(op.name) is Policy.LOWER else Policy.PROMOTE


_FACTORIES = {"zeros", "ones", "full", "scalar_tensor"}
"""They make what they are asked for; models of `transformers` ask for the type of what is there."""


def _returns(own: Paths, d: TypedDraft, k: int, op: Op) -> bool:
    return makes_complex(d, k, op) or (op.module in own and base(op.name) == "_softmax")
