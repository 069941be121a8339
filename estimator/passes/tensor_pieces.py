"""Asynchronous tensor parallelism: a product and the collective beside it go in as many pieces as there are ranks.

    one after the other    all_gather ...... | mm ........            mm ........ | reduce_scatter ......
    in pieces              s1  s2  s3                                 mm1 mm2 mm3 mm0
                           mm0 mm1 mm2 mm3                                s1  s2  s3

After Wang et al. 2023 (ASPLOS) and torch's micro-pipelined products (torch/distributed/_symmetric_memory), which need
torch.compile. A rank's own piece is not sent. Each piece of a product has its part of the rows; what is allocated stays
as it is. Symmetric buffers, one gathered input a group, are outside of the allocator and not counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.passes.draft import Draft, made_storage
from dnnmem.estimator.passes.remat import PRODUCTS
from dnnmem.estimator.trace import Event, Kind, Op, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

if TYPE_CHECKING:
    from collections.abc import Sequence

_GATHER, _SCATTER = "dnnmem.all_gather.tp", "dnnmem.reduce_scatter.tp"
_SEND = "dnnmem.send.tp"


def in_pieces(trace: Trace, tp: int) -> Trace:
    """`trace`, a rank's part, with each gather that a product waits for, and each scatter of one, in `tp` pieces."""
    draft = Draft(trace)
    ops: list[Op] = []
    products: dict[int, int] = {}
    for op in trace.ops:
        before = ops[-1] if ops else None
        if op.name in PRODUCTS and before is not None and before.name == _GATHER and before.writes[0] in op.reads:
            ops[-1:] = _gathered(draft, before, op, tp)
        elif op.name == _SCATTER and (at := products.get(op.reads[0], -1)) >= 0:
            ops[at : at + 1] = _scattered(draft, ops[at], op, tp)
            products.clear()
        else:
            ops.append(op)
        touched = {*op.reads, *op.writes}
        products = {i: at for i, at in products.items() if i not in touched}
        if op.name in PRODUCTS and ops[-1] is op:
            products.update(dict.fromkeys(op.writes, len(ops) - 1))
    return replace(trace, ops=tuple(ops), storages=draft.storages)


def _gathered(draft: Draft, gather: Op, product: Op, tp: int) -> list[Op]:
    """All pieces are sent at once; each piece of the product waits for its own."""
    there = [draft.add(made_storage(0, Kind.COMM, "piece")) for _ in range(1, tp)]
    sent = [
        op_like(
            gather, name=_SEND, moved_bytes=gather.moved_bytes // tp,
            writes=(piece, *(gather.writes if piece == there[-1] else ())),
            events=gather.events if piece == there[0] else (),
        )
        for piece in there
    ]  # fmt: skip
    others = tuple(i for i in product.reads if i not in gather.writes)
    return [*sent, *_pieces(draft, product, tp, [others, *((piece, *others) for piece in there[:-1])])]


def _scattered(draft: Draft, product: Op, scatter: Op, tp: int) -> list[Op]:
    """Each piece of the product is sent while the next is made; the rank's own comes last."""
    found: list[Op] = []
    for n, piece in enumerate(_pieces(draft, product, tp, [product.reads] * (tp - 1))):
        found.append(piece)
        if n < tp - 1:
            sent = op_like(scatter, name=_SEND, moved_bytes=scatter.moved_bytes // tp, events=())
            found.append(op_like(sent, reads=piece.writes[:1], writes=piece.writes[:1]))
    arrived = tuple(op.writes[0] for op in found if op.name == _SEND)
    own = Op(
        name="dnnmem.copy_out.tp", module=scatter.module, phase=scatter.phase, reads=(*scatter.reads, *arrived),
        writes=scatter.writes, events=scatter.events, moved_bytes=scatter.moved_bytes,
    )  # fmt: skip
    return [*found, own]


def _pieces(draft: Draft, product: Op, tp: int, reads: Sequence[tuple[int, ...]]) -> list[Op]:
    """The product in `tp` parts of its rows; all of its result is there with the last, which reads what it did."""
    out = draft.storages[product.writes[0]]
    rows = max(1, out.shape[0] // tp) if out.shape else 1
    part = storage_like(out, nbytes=0, shape=(rows, *out.shape[1:]), kind=Kind.TEMP)
    found: list[Op] = []
    for n in range(tp):
        last = n == tp - 1
        found.append(
            op_like(
                product, flops=product.flops // tp, masked_flops=product.masked_flops // tp,
                moved_bytes=product.moved_bytes // tp, reads=product.reads if last else reads[n],
                writes=(draft.add(part), *(product.writes if last else ())),
                events=_share(product, n, tp),
            )
        )  # fmt: skip
    return found


def _share(product: Op, n: int, tp: int) -> tuple[Event, ...]:
    """Its own events are split between the first piece, which allocates, and the last, which frees."""
    made = tuple(e for e in product.events if e.nbytes > 0)
    gone = tuple(e for e in product.events if e.nbytes < 0)
    return (made if n == 0 else ()) + (gone if n == tp - 1 else ())
