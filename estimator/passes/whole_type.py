"""A step recorded in float32 as the same model runs it after `model.to(bfloat16)`: parameters and all that follows.

    float32    p, b, x          norm -> y, mean, rstd     mm      loss     gradients    optimizer states
    bfloat16   p', b', x -> x'  norm -> y', mean, rstd    mm'     loss'    gradients'   states'

Floating inputs are cast when they come in, and outputs to float32 when they go out: losses see no rounding. Statistics of norms stay in float32; so does what models of `transformers`
compute there whatever they are given: powers in their own norms, and softmax.
"""

from __future__ import annotations

from fractions import Fraction

from dnnmem.estimator.passes.autocast import FLOAT, Autocast
from dnnmem.estimator.passes.autocast_lists import Policy, base, policy_of
from dnnmem.estimator.passes.update import SIZES, scale_update, states
from dnnmem.estimator.trace import Kind, Op, Phase, Trace


def in_whole(trace: Trace, lower: str) -> Trace:
    """`trace`, recorded in float32, of a model that is cast to `lower`."""
    return _Whole(trace, lower).run()


class _Whole(Autocast):
    def __init__(self, trace: Trace, lower: str) -> None:
        super().__init__(trace, lower)
        self.own = frozenset(m.path for m in trace.modules if "transformers" in m.source)
        kept = {Kind.PARAM, Kind.BUFFER, Kind.GRAD, Kind.OPTIMIZER}
        counters = {i for i, s in trace.storages.items() if s.kind is Kind.OPTIMIZER} - {*states(trace.storages)}
        for i, s in trace.storages.items():
            if s.kind in kept and s.dtype == FLOAT and i not in counters and (s.kind is not Kind.BUFFER or s.name):
                self.types[i] = lower
        shares = {i: Fraction(SIZES[lower], SIZES[FLOAT]) for i in self.types}
        scale_update(self.draft, self.known, shares)
        changed = {i for k, op in enumerate(trace.ops) if op.phase is Phase.STEP for i in op.writes}
        for i in changed - self.types.keys():
            if trace.storages[i].dtype == FLOAT and self.draft.storages[i].nbytes != trace.storages[i].nbytes:
                self.types[i] = lower

    def _policy(self, k: int, op: Op) -> Policy:
        short = base(op.name)
        if op.module in self.own:
            if short in {"pow", "_softmax"}:
                return Policy.FLOAT32
            weighs = short == "mul" and any(self.trace.storages[i].kind is Kind.PARAM for i in op.reads)
            if weighs:
                return Policy.LOWER
        if any(self.trace.storages[i].kind is Kind.INPUT and self.trace.storages[i].dtype == FLOAT for i in op.reads):
            return Policy.LOWER
        return Policy.LOWER if policy_of(op.name) is Policy.LOWER else Policy.PROMOTE

    def _is_kept(self, i: int) -> bool:
        return self.trace.storages[i].kind is Kind.INPUT

    def _returns(self, k: int, op: Op) -> bool:
        return op.module in self.own and base(op.name) == "_softmax"
