"""Which forward op each backward op belongs to, and which backward ops one autograd node runs.

    forward    f: mm(x, w) -> y                      place: module and line
    backward   mm(g, w), mm(g, x), sum(g)            same place; reads x, w or y: of node f; so is what follows with g

A trace does not say it; place, names and what was kept for backward do in nearly all cases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dnnmem.estimator.passes.autocast_lists import Policy, base, policy_of
from dnnmem.estimator.trace import Op, Phase


def links(ops: Sequence[Op]) -> dict[int, int]:
    """Backward op -> forward op, by index; those of no known op are left out."""
    at: dict[object, list[int]] = defaultdict(list)
    for k, op in enumerate(ops):
        if op.phase is Phase.FORWARD:
            at[op.module, op.source].append(k)
    found: dict[int, int] = {}
    for k, op in enumerate(ops):
        if op.phase is not Phase.BACKWARD:
            continue
        candidates = at.get((op.module, op.source), ())
        f = _link(ops, op, candidates)
        if f is None and k and found.get(k - 1) in candidates and _follows(ops[k - 1], op, ops[found[k - 1]]):
            f = found[k - 1]
        if f is not None:
            found[k] = f
    return found


def groups(ops: Sequence[Op], linked: dict[int, int]) -> list[list[int]]:
    """Backward ops in runs of one node each."""
    result: list[list[int]] = []
    for k, op in enumerate(ops):
        if op.phase is Phase.BACKWARD:
            f = linked.get(k)
            if f is not None and result and result[-1][-1] == k - 1 and linked.get(k - 1) == f:
                result[-1].append(k)
            else:
                result.append([k])
    return result


def _link(ops: Sequence[Op], op: Op, candidates: Sequence[int]) -> int | None:
    short = base(op.name).rstrip("_")
    is_product = policy_of(op.name) is Policy.LOWER
    named = [
        f for f in candidates
        if (is_product and policy_of(ops[f].name) is Policy.LOWER) or is_backward_of(short, base(ops[f].name))
    ]  # fmt: skip
    mine = {*op.reads}
    sharing = [f for f in named if not mine.isdisjoint((*ops[f].reads, *ops[f].writes))]
    if sharing:
        return max(sharing, key=lambda f: (len(mine & {*ops[f].reads, *ops[f].writes}), f))
    return named[0] if len(named) == 1 and not is_product else None


def is_backward_of(backward: str, forward: str) -> bool:
    """Whether an op of a backward pass may belong to a forward op, by their base names, products left out."""
    forward = forward.rstrip("_")
    if "_backward" not in backward:
        return backward == forward
    return backward.startswith((forward, forward.removesuffix("_forward"))) or (backward, forward) in _OTHERS


_OTHERS = {
    ("threshold_backward", "relu"), ("native_batch_norm_backward", "cudnn_batch_norm"),
    ("cudnn_batch_norm_backward", "native_batch_norm"), ("_adaptive_avg_pool2d_backward", "mean"),
    ("embedding_dense_backward", "embedding"),
}  # fmt: skip


def _follows(before: Op, op: Op, forward: Op) -> bool:
    """A bias's gradient is the sum of what the products before it read."""
    return (
        base(op.name) == "sum" and policy_of(forward.name) is Policy.LOWER and not {*before.reads}.isdisjoint(op.reads)
    )
