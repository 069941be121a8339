"""Micro-batches and accumulation: with several micro-batches a step, gradients stay between them and are added to.

    one micro-batch     backward makes g                              update   free g
    several             backward makes t, g += t, free t (g pinned)   update

Each micro-batch's loss counts 1 / accumulation: the gradients of the model's outputs are multiplied by it.
Without `keep_output` the logits, often the largest tensor of a step, are gone when the backward pass needs most.

The trace stays one micro-batch: whoever prices the step counts its forward and backward pass `accumulation` times.
Where ranks keep parts of gradients only (zero2, zero3), whole ones do not outlive their sum, and only the parts stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import Draft, Life, lives
from dnnmem.estimator.passes.fsdp_groups import LOSS
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """One of `plan.batch.accumulation` micro-batches. Raises `UnsupportedError` for another size than recorded."""
    del cluster
    wanted, recorded = plan.batch.micro_batch, trace.batch.get("batch_size")
    if wanted is not None and wanted != recorded:
        raise UnsupportedError(
            f"batch.micro_batch is {wanted}, but the step was recorded with {recorded}; sizes are those of the record",
            hint=f"profile with --batch {wanted}",
        )
    if not plan.batch.keep_output:
        trace = _drop_output(trace)
    return trace if plan.batch.accumulation == 1 else _accumulated(trace, plan)


def _accumulated(trace: Trace, plan: Plan) -> Trace:
    """Gradients that stay between micro-batches."""
    draft, known = Draft(trace), lives(trace.ops)
    kept: dict[int, set[int]] = {}
    parts = plan.sharding.strategy in {"zero2", "zero3"} and plan.mesh.data_ranks > 1
    for i, s in trace.storages.items():
        if s.kind is not Kind.GRAD or i in trace.pinned or i not in known or not s.nbytes:
            continue
        life = known[i]
        backward = [k for k in life.uses if trace.ops[k].phase is Phase.BACKWARD]
        if life.made < 0 or not backward or trace.ops[life.made].phase is not Phase.BACKWARD:
            continue
        if any(0 <= life.freed <= k for k in backward):
            continue  # gone before the update: a term of the real one
        if life.freed >= 0:
            kept.setdefault(life.freed, set()).add(i)
        draft.pinned.add(i)
        if parts:
            op = draft.ops[life.made]
            draft.ops[life.made] = op_like(op, events=tuple(e for e in op.events if e.storage != i))
        else:
            _add(draft, i, backward)
    _share(draft, known)
    for k, ids in kept.items():
        op = draft.ops[k]
        draft.ops[k] = op_like(op, events=tuple(e for e in op.events if e.storage not in ids or e.nbytes > 0))
    found = draft.finish()
    return found if parts else replace(found, setup=_set_up(trace, found))


def _set_up(trace: Trace, found: Trace) -> tuple[Event, ...]:
    """All until the second step's second micro-batch: gradients lie where its first one found room for them."""
    storages = found.storages
    kept = sorted(found.pinned - trace.pinned)
    events = [e for e in found.setup if e.storage not in kept]
    events += _micro_batch(trace, found, sorted(i for i in trace.pinned if storages[i].kind is Kind.TEMP))
    states = [Event(storages[i].nbytes, 0, i) for i in sorted(trace.pinned) if storages[i].kind is Kind.OPTIMIZER]
    for op in found.ops:
        if op.phase is Phase.STEP and states:
            events += states
            states = []
        events += op.events
    events += [Event(-storages[i].nbytes, 0, i) for i in kept]
    return (*events, *_micro_batch(trace, found, []))


def _micro_batch(trace: Trace, found: Trace, spaces: list[int]) -> list[Event]:
    """The first one of a step, which makes the gradients; `spaces` are libraries' workspaces that do not live yet."""
    events: list[Event] = []
    live: dict[int, Event] = {}
    begun: set[Phase] = set()
    for op in trace.ops:
        if op.phase is Phase.STEP:
            continue
        events += op.events
        for e in op.events:
            if e.nbytes > 0:
                live[e.storage] = e
            else:
                live.pop(e.storage, None)
        if op.flops and spaces and op.phase not in begun:  # the first product of a pass
            begun.add(op.phase)
            space = spaces.pop(0)
            events.append(Event(trace.storages[space].nbytes, 0, space))
    left = [e for i, e in live.items() if i not in found.pinned]
    return [*events, *(Event(-e.nbytes, e.stream, e.storage) for e in left)]


def _share(draft: Draft, known: Mapping[int, Life]) -> None:
    """Multiply what the loss hands to the model's backward pass: a new gradient in the place of each."""
    ops, storages = draft.trace.ops, draft.trace.storages
    for i, life in known.items():
        if life.made < 0 or ops[life.made].phase is not Phase.BACKWARD or ops[life.made].module != LOSS:
            continue
        inside = [k for k in life.uses if ops[k].phase is Phase.BACKWARD and ops[k].module != LOSS]
        if not inside or life.freed < inside[0] or storages[i].kind is Kind.GRAD:
            continue
        shared = draft.add(storage_like(storages[i], name=""))
        for k in range(inside[0], life.freed + 1):
            draft.ops[k] = renamed(draft.ops[k], {i: shared})
        nbytes = storages[i].nbytes
        events = (Event(nbytes, 0, shared), Event(-nbytes, 0, i))
        share = Op(
            name="aten.mul.Tensor", module=LOSS, phase=Phase.BACKWARD, reads=(i,), writes=(shared,), events=events,
            moved_bytes=2 * nbytes,
        )  # fmt: skip
        draft.before.setdefault(inside[0], []).append(share)


def _drop_output(trace: Trace) -> Trace:
    """Free what the forward pass made and nothing but the program's variables holds when it is over, or last used."""
    draft, known = Draft(trace), lives(trace.ops)
    end = max((k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD), default=-1)
    for i, life in known.items():
        if i in trace.pinned or life.made < 0 or life.freed < 0 or trace.ops[life.made].phase is not Phase.FORWARD:
            continue
        if trace.ops[life.freed].phase is Phase.STEP and life.uses[-1] < life.freed:
            draft.unfree(life.freed, i)
            draft.free(max(end, life.uses[-1]), i)
    return draft.finish()


def _add(draft: Draft, grad: int, backward: list[int]) -> None:
    """Let backward ops make a term, and add it."""
    term = draft.add(storage_like(draft.trace.storages[grad], kind=Kind.TEMP, name=""))
    for k in backward:
        draft.ops[k] = renamed(draft.ops[k], {grad: term})
    last, nbytes = backward[-1], draft.trace.storages[grad].nbytes
    add = Op(
        name="aten.add_.Tensor", module=draft.trace.ops[last].module, phase=Phase.BACKWARD, reads=(grad, term),
        writes=(grad,), events=(Event(-nbytes, 0, term),), moved_bytes=3 * nbytes,
    )  # fmt: skip
    draft.after.setdefault(last, []).append(add)
