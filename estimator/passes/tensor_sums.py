"""Sums of gradients under tensor parallelism that no collective of a layer takes.

    plain tensors    a += b, free b               autograd adds into the first, if nobody else holds it
    shared matrix    c = a + b, free a, free b    of plain parameters; between DTensors' calls it is a += b
    DTensors         c = a + b, free a, free b    it asks for plain tensors (`can_accumulate_inplace` of
                                                  torch/csrc/autograd/input_buffer.cpp)

Under sequence parallelism the gradients of what no rank holds a part of (norms) are sums over parts of the sequence.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from dnnmem.estimator.passes.draft import Draft, Life, made_storage
from dnnmem.estimator.passes.typed_frees import without
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, renamed

ADDED = "aten.add_.Tensor"
"""A sum of gradients, as recorded."""
_TWO = "aten.add.Tensor"
"""One of two that somebody else holds too: of a matrix that modules share."""


def summed(trace: Trace, sums: Iterable[int], *, local: bool) -> Trace:
    """`trace` with `sums` of DTensors. Where parameters are plain between calls, `local`, shared ones' are in place."""
    trace, first = out_of_place(trace, sums), dict[int, int]()
    for op in trace.ops if local else ():
        if op.name == _TWO and op.phase is Phase.BACKWARD and trace.storages[op.writes[0]].kind is Kind.GRAD:
            first[op.writes[0]] = first.get(op.reads[0], op.reads[0])
    return without(trace, first, first) if first else trace


def out_of_place(trace: Trace, sums: Iterable[int]) -> Trace:
    """`trace`, whose backward pass adds into storages `sums` out of place: each sum is new, the last keeps the name."""
    draft = Draft(trace)
    for total in sums:
        added = [k for k, op in enumerate(trace.ops) if _adds(op, total)]
        begin = next(
            (k for k, op in enumerate(trace.ops) if any(e.storage == total for e in op.events)), len(trace.ops)
        )
        for k in added:
            _renew(draft, total, begin, k)
            begin = k
    return draft.finish()


def _adds(op: Op, total: int) -> bool:
    return op.name == ADDED and op.phase is Phase.BACKWARD and op.writes[:1] == (total,)


def _renew(draft: Draft, total: int, begin: int, k: int) -> None:
    """Let ops from `begin` on work on a storage that op `k` frees when it has made `total` of it."""
    like = draft.storages[total]
    term = draft.add(made_storage(like.nbytes, Kind.TEMP, like.name, like))
    for at in range(begin, k):
        if total in (*draft.ops[at].reads, *draft.ops[at].writes) or total in draft.ops[at].frees:
            draft.ops[at] = renamed(draft.ops[at], {total: term})
    op, size = draft.ops[k], like.nbytes
    draft.ops[k] = op_like(
        op, reads=tuple(term if i == total else i for i in op.reads),
        events=(Event(size, 0, total), Event(-size, 0, term), *op.events),
    )  # fmt: skip


def alone(trace: Trace, known: Mapping[int, Life], last: int, split: Container[int]) -> tuple[int, ...]:
    """Whole gradients that the backward pass, up to op `last`, makes and leaves."""
    return tuple(
        i
        for i, s in trace.storages.items()
        if s.kind is Kind.GRAD and i in known and i not in split and 0 <= known[i].made <= last
        and not 0 <= known[i].freed <= last
    )  # fmt: skip
