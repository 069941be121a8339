"""A weight that two stages share: each has a gradient of its own, and the update begins with their sum.

recorded   term of the last stage ... term of the first stage, [their sum]      pipeline   term | term, sent and added
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dnnmem.estimator.passes.draft import Life, lives
from dnnmem.estimator.passes.update import element_bytes
from dnnmem.estimator.trace import Kind, Op, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like


def untie(trace: Trace, owners: list[int]) -> tuple[Trace, list[int], dict[int, dict[int, int]], Mapping[int, Life]]:
    """Leave each chunk its own term of a tied weight's gradient: for chunks, the gradient that stands for another.

    Also the lives in the new trace.
    """
    known = lives(trace.ops)
    ops, storages = list(trace.ops), dict(trace.storages)
    aliases: dict[int, dict[int, int]] = {}
    drop: set[int] = set()
    for k, op in enumerate(trace.ops):
        grad = _tied_sum(trace, known, op) if owners[k] >= 0 else None
        if grad is None:
            continue
        far = [i for i in op.reads if owners[known[i].made] != owners[k]]
        near = [i for i in op.reads if i not in far]
        if len(far) != 1 or len(near) != 1:
            continue
        drop.add(k)
        theirs, their = owners[known[far[0]].made], far[0]
        if their == grad:  # the sum was made in its place
            their = max(storages) + 1
        for at in known[far[0]].uses:
            if owners[at] == theirs:
                ops[at] = _as_gradient(ops[at], far[0], their, storages[grad].nbytes)
        storages[their] = storage_like(storages[grad], id=their)
        aliases.setdefault(theirs, {})[grad] = their
        for at in known[near[0]].uses:
            if at != k:
                ops[at] = _as_gradient(ops[at], near[0], grad, storages[grad].nbytes)
    if not drop:
        return trace, owners, aliases, known
    kept = [k for k in range(len(ops)) if k not in drop]
    trace = replace(trace, ops=tuple(ops[k] for k in kept), storages=storages)
    return trace, [owners[k] for k in kept], aliases, lives(trace.ops)


def _tied_sum(trace: Trace, known: Mapping[int, Life], op: Op) -> int | None:
    """The gradient that `op` makes as a sum of two terms like it, both of this pass; None for any other op."""
    if len(op.reads) != 2 or not op.name.startswith(("aten.add.", "aten.add_.")):
        return None
    grads = [i for i in op.writes if trace.storages[i].kind is Kind.GRAD]
    if len(grads) != 1:
        return None
    alike = [trace.storages[i] for i in (*op.reads, *grads)]
    elements = {s.nbytes // element_bytes(s.dtype) for s in alike}  # of a rank's part, and in whatever type
    return grads[0] if len(elements) == 1 and all(known[i].made >= 0 for i in op.reads) else None


def _as_gradient(op: Op, term: int, grad: int, nbytes: int) -> Op:
    """`op` with a gradient, in its own type, in the place of a term of it."""
    op = renamed(op, {term: grad})
    sized = (e._replace(nbytes=nbytes if e.nbytes > 0 else -nbytes) if e.storage == grad else e for e in op.events)
    return op_like(op, events=tuple(sized))
