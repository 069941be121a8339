"""Micro-batches and accumulation: with several micro-batches a step, gradients stay between them and are added to.

    one micro-batch     backward makes g                              update   free g
    several             backward makes t, g += t, free t (g pinned)   update

Each micro-batch's loss counts 1 / accumulation: the gradients of the model's outputs are multiplied by it.
Without `keep_output` the logits, often the largest tensor of a step, are gone when the backward pass needs most.

The trace stays one micro-batch: whoever prices the step counts its forward and backward pass `accumulation` times.
Where ranks keep parts of gradients only (zero2, zero3), whole ones do not outlive their sum, and only the parts stay;
but those of a pipeline's stage are whole until its last micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.first_step import FIRST_STEP, Unmade, has_own_workspace, is_kept, is_of_first_step, remade
from dnnmem.estimator.passes.draft import Draft, Life, lives
from dnnmem.estimator.passes.fsdp_groups import LOSS
from dnnmem.estimator.passes.pipeline_buffers import ALL_SENT
from dnnmem.estimator.plan_pipeline import has_buffers, reduces_at_end
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

_ADD, _SCATTER = "aten.add_.Tensor", "dnnmem.reduce_scatter.dp_shard"
MADE_AGAIN = "dnnmem.made_again"
"""Gradients that are gone in the update, and that the next step's first micro-batch makes."""
_CAST = "aten._to_copy.default"
_SUMS = {_ADD, "aten.add.Tensor"}


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """One of `plan.batch.accumulation` micro-batches. Raises `UnsupportedError` for another size than recorded."""
    del cluster
    wanted, recorded = plan.batch.micro_batch, trace.batch.get("batch_size")
    if wanted is not None and wanted != recorded:
        raise UnsupportedError(
            f"batch.micro_batch is {wanted}, but the step was recorded with {recorded}; sizes are those of the record",
            hint=f"profile with --batch {wanted}",
        )
    if not plan.batch.keep_output or has_buffers(plan):  # stages hand over the loss, which is all that is left
        trace = _drop_output(trace)
    if plan.batch.accumulation == 1:
        return trace
    if _updates_again(trace.ops):
        raise UnsupportedError(
            f"batch.accumulation is {plan.batch.accumulation}, but a step of {trace.origin.target or 'this model'} "
            "updates more than once, with whole passes between: which of them belong together is not known",
            hint="accumulate in the loop itself, and leave batch.accumulation out",
        )
    return _accumulated(_let_go_last(trace), plan)


def _let_go_last(trace: Trace) -> Trace:
    """Gradients that `zero_grad` lets go of before the backward pass go behind the update, as in other loops.

    A second micro-batch finds them either way, and lets go of none.
    """
    late = remade(trace.ops, (trace.storages[i] for i in trace.pinned))
    if not late:
        return trace
    ops, left = [], set(late)
    for op in trace.ops:
        gone = [e for e in op.events if e.nbytes < 0 and e.storage in left]
        left.difference_update(e.storage for e in gone)
        ops.append(op_like(op, events=tuple(e for e in op.events if e not in gone)) if gone else op)
    freed = (Event(-trace.storages[i].nbytes, 0, i) for i in sorted(late))
    ops[-1] = op_like(ops[-1], events=(*ops[-1].events, *freed))
    return replace(trace, ops=tuple(ops), pinned=trace.pinned - late)


def _updates_again(ops: Sequence[Op]) -> bool:
    """Whether whole passes lie between two updates: a GAN's step, or a closure that an optimizer calls repeatedly."""
    passes: set[Phase] | None = None  # since the last update
    for op in ops:
        if op.phase is not Phase.STEP:
            if passes is not None:
                passes.add(op.phase)
        elif passes == {Phase.FORWARD, Phase.BACKWARD}:
            return True
        else:
            passes = set()
    return False


def _accumulated(trace: Trace, plan: Plan) -> Trace:
    """Gradients that stay between micro-batches."""
    draft, known = Draft(trace), lives(trace.ops)
    kept: dict[int, set[int]] = {}
    parts = plan.sharding.strategy in {"zero2", "zero3"} and plan.mesh.data_ranks > 1 and not reduces_at_end(plan)
    for i, s in trace.storages.items():
        if s.kind is not Kind.GRAD or i in trace.pinned or i not in known or not s.nbytes:
            continue
        life = known[i]
        backward = [k for k in life.uses if trace.ops[k].phase is not Phase.STEP]  # a fused loss makes it forward
        if life.made < 0 or not backward or trace.ops[life.made].phase is Phase.STEP:
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
    if not has_buffers(plan):  # whose gradients are divided in place, at the end
        _share(draft, known)
    _keep(draft, kept)
    return draft.finish()


def _keep(draft: Draft, kept: Mapping[int, set[int]]) -> None:
    """Take back that ops free gradients; what is cast for masters, one after the other, goes and comes again."""
    cast: list[int] = []
    for k, ids in kept.items():
        op = draft.ops[k]
        if op.name == _CAST:
            cast += sorted(ids)
        else:
            draft.ops[k] = op_like(op, events=tuple(e for e in op.events if e.storage not in ids or e.nbytes > 0))
    if cast:
        made_again(draft, cast)


def made_again(draft: Draft, grads: Sequence[int]) -> None:
    """Allocate `grads` once the step is over, as the first of the next one's micro-batches does."""
    end, sizes = draft.trace.ops[-1], draft.storages
    made = Op(
        name=MADE_AGAIN, module=end.module, phase=Phase.STEP, writes=tuple(grads),
        events=tuple(Event(sizes[g].nbytes, 0, g) for g in grads if sizes[g].nbytes),
    )  # fmt: skip
    draft.after.setdefault(len(draft.trace.ops) - 1, []).append(made)


def with_first_steps(trace: Trace) -> Trace:
    """`trace` with a set-up that goes on until the second step's second micro-batch; unchanged if it adds to nothing.

    Gradients lie where a step's first micro-batch found room for them. To be done when all passes are.
    """
    terms = _terms(trace)
    grads = set(terms.values())
    if not grads:
        return trace
    new = [s for i, s in trace.storages.items() if i in trace.pinned and is_of_first_step(s)]
    late = {kind: [s.id for s in new if s.kind is kind] for kind in FIRST_STEP}
    first = {i for some in late.values() for i in some}
    events = [e for e in trace.setup if e.storage not in grads | first]
    only_first = {e.storage: e for e in events if e.nbytes > 0 and e.storage not in trace.pinned}
    for e in events:
        if e.nbytes < 0:
            only_first.pop(e.storage, None)
    there = {e.storage for e in events}
    events += _made(trace, [s.id for s in new if is_kept(s) and s.id not in there])
    events += _first_micro_batch(trace, terms, late[Kind.TEMP])
    unmade = Unmade(trace, [trace.storages[i] for i in late[Kind.OPTIMIZER]])
    for op in trace.ops:
        events += _made(trace, unmade.due(op))
        events += op.events
    params = [(s.module, s.name) for s in trace.storages.values() if s.kind is Kind.PARAM]
    place = {owner: n for n, owner in enumerate(params)}  # in which `zero_grad` goes through them
    order = sorted(grads, key=lambda i: (place.get((trace.storages[i].module, trace.storages[i].name), len(place)), i))
    events += _made(trace, unmade.left)
    events += [Event(-trace.storages[i].nbytes, 0, i) for i in order]
    events += [Event(-e.nbytes, e.stream, e.storage) for e in only_first.values()]
    events += _made(trace, late[Kind.COMM])
    return replace(trace, setup=(*events, *_first_micro_batch(trace, terms, [])))


def _terms(trace: Trace) -> dict[int, int]:
    """What is added to gradients that are there, and to which: a whole one's term, or what a reduce-scatter makes."""
    found = {}
    for op in trace.ops:
        if op.phase is Phase.BACKWARD and op.name == _ADD and len(op.reads) == 2:
            found[op.reads[1]] = op.reads[0]
        elif op.name.startswith(_SCATTER):
            made = [e.storage for e in op.events if e.nbytes > 0]
            if made and made[0] != op.writes[-1]:  # what follows is to divide by
                found[made[0]] = op.writes[-1]
    kept = {i for i in trace.pinned if trace.storages[i].kind is Kind.GRAD}
    return {term: grad for term, grad in found.items() if grad in kept}


def _made(trace: Trace, ids: Iterable[int]) -> list[Event]:
    return [Event(trace.storages[i].nbytes, 0, i) for i in ids if trace.storages[i].nbytes]


def _first_micro_batch(trace: Trace, terms: Mapping[int, int], spaces: Sequence[int]) -> list[Event]:
    """The one that makes the gradients; `spaces` are libraries' workspaces that do not live yet."""
    events: list[Event] = []
    live: dict[int, Event] = {}
    left, begun, grads = [*spaces], set[Phase](), {*terms.values()}
    for op in trace.ops:
        if op.phase is Phase.STEP:
            continue
        for e in op.events:
            if e.storage in grads:  # it goes when it is sent
                continue
            grad = trace.storages[terms[e.storage]] if e.storage in terms else None
            if grad is None or grad.nbytes != abs(e.nbytes):  # a gradient in the type of the wire, cast and gone
                events.append(e)
                if e.nbytes > 0:
                    live[e.storage] = e
                else:
                    live.pop(e.storage, None)
            if grad is not None and e.nbytes > 0:
                events.append(Event(grad.nbytes, e.stream, grad.id))
        if op.flops and left and op.phase not in begun and not has_own_workspace(op):  # the first product of a pass
            begun.add(op.phase)
            events += _made(trace, [left.pop(0)])
    events += _made(trace, left)
    return [*events, *(Event(-e.nbytes, e.stream, e.storage) for i, e in live.items() if i not in trace.pinned)]


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
        end_op = trace.ops[life.freed]
        if end_op.phase is Phase.STEP and end_op.name != ALL_SENT and life.uses[-1] < life.freed:
            draft.unfree(life.freed, i)
            draft.free(max(end, life.uses[-1]), i)
    return draft.finish()


def _add(draft: Draft, grad: int, backward: list[int]) -> None:
    """Let backward ops make a term, and add it."""
    term = draft.add(storage_like(draft.trace.storages[grad], kind=Kind.TEMP, name=""))
    for k in backward:
        draft.ops[k] = renamed(draft.ops[k], {grad: term})
    last, nbytes = _delivered(draft.trace.ops, backward[-1]), draft.trace.storages[grad].nbytes
    add = Op(
        name=_ADD, module=draft.trace.ops[last].module, phase=Phase.BACKWARD, reads=(grad, term),
        writes=(grad,), events=(Event(-nbytes, 0, term),), moved_bytes=3 * nbytes,
    )  # fmt: skip
    draft.after.setdefault(last, []).append(add)


def _delivered(ops: Sequence[Op], k: int) -> int:
    """Where a node that ran op `k` has handed on what it made: sums for other nodes come before those of gradients."""
    op = ops[k]
    made = {*op.writes}
    if _same_node(ops, k - 1, k):  # addmm makes the gradient of its input first, mm that of its weight
        made.update(ops[k - 1].writes)
    elif _same_node(ops, k, k + 1):
        k += 1
        made.update(ops[k].writes)
    if k + 1 < len(ops) and ops[k + 1].name.startswith("aten.sum.") and ops[k + 1].module == op.module:
        k += 1  # of a bias, which is the node's too
    while k + 1 < len(ops) and ops[k + 1].name in _SUMS and made.intersection(ops[k + 1].reads):
        k += 1
    return k


def _same_node(ops: Sequence[Op], a: int, b: int) -> bool:
    """Whether two ops are the products of one node: both take the gradient of its output."""
    if a < 0 or b >= len(ops):
        return False
    one, other = ops[a], ops[b]
    return one.module == other.module and one.name == other.name and not {*one.reads}.isdisjoint(other.reads)
