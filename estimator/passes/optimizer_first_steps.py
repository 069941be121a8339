"""The steps before one that renews: what optimizers with roots, bases or projections leave in the allocator until then.

    first step     forward | backward | [states] update, with what it renews; SOAP makes bases alone
    second step    forward | backward | update without it
    the trace      forward | backward | update, with what it renews

A step that renews takes room that is there only because steps without went before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dnnmem.estimator.first_step import first_step, is_of_first_step
from dnnmem.estimator.passes.optimizer_soap import first_ops
from dnnmem.estimator.passes.optimizer_update import RENEWAL
from dnnmem.estimator.trace import Event, Trace


def with_first_steps(trace: Trace) -> Trace:
    """`trace` with a set-up that goes on to the end of the second step; unchanged if it renews nothing.

    To be done when all passes are.
    """
    if not any(op.module == RENEWAL for op in trace.ops):
        return trace
    there = {e.storage for e in trace.setup if e.nbytes > 0} - {e.storage for e in trace.setup if e.nbytes < 0}
    missing = [s for i, s in trace.storages.items() if i in trace.pinned and i not in there and s.nbytes]
    early = (Event(s.nbytes, 0, s.id) for s in missing if not is_of_first_step(s))
    first = first_step(replace(trace, ops=tuple(first_ops(trace))), [s for s in missing if is_of_first_step(s)])
    return replace(trace, setup=(*trace.setup, *early, *first, *_without_renewal(trace)))


def _without_renewal(trace: Trace) -> Iterator[Event]:
    made = {e.storage for op in trace.ops if op.module == RENEWAL for e in op.events if e.nbytes > 0}
    for op in trace.ops:
        yield from (e for e in op.events if op.module != RENEWAL or (e.storage >= 0 and e.storage not in made))
