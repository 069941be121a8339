"""Another optimizer, or another kernel of the same: the recorded update makes room for what torch's would do instead.

    recorded   clip | mul lerp mul addcmul sqrt div add addcdiv | free gradients      the update: from the first op over
    adamw, fused    | fused_adamw (in place)                    |                     parameters or states to the last
    adafactor       | norm .. lerp .. mm .. rsqrt .. add, ...   |
    in_backward       ... grad w2 | update w2, free | grad w1 | update w1, free       gradients never live together

Parameters, their order, and groups (recorded lists of `foreach` or `fused`; a loop tells none, and counts as one) stay,
as do their gradients and what else lives in the step. States are new; rules for them are in `optimizer_rules`. With
master weights (the precision pass comes before) these are what is updated, and the cast back follows.

Another kernel computes the same; another algorithm is another training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.hidden import hidden_of
from dnnmem.estimator.passes.draft import Draft, Life, lives
from dnnmem.estimator.passes.optimizer_limits import check_limits
from dnnmem.estimator.passes.optimizer_recorded import Recorded, recorded_update, updated
from dnnmem.estimator.passes.optimizer_rule import Rule
from dnnmem.estimator.passes.optimizer_rules import RULES
from dnnmem.estimator.passes.optimizer_states import narrow_states, update_narrow
from dnnmem.estimator.passes.optimizer_torch import sgd
from dnnmem.estimator.passes.optimizer_update import Entry, Update
from dnnmem.estimator.reduction import Threads
from dnnmem.estimator.trace import Event, Kind, Op, Part, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Optimizer, Plan


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with the update of `plan.optimizer`; the same object where that is what was recorded.

    Raises `UsageError` for a kernel that the optimizer does not have, `UnsupportedError` for a step without an update,
    for another kernel of an optimizer that is not known, and for what `optimizer_limits` refuses.
    """
    wanted = plan.optimizer
    if wanted.name is wanted.kernel is wanted.state is None and not wanted.in_backward:
        return trace
    known = lives(trace.ops)
    found = recorded_update(trace)
    name = wanted.name or found.name
    if name == found.name and wanted.kernel in (None, found.kernel) and not wanted.state and not wanted.in_backward:
        return trace
    rule = found.rule if wanted.name in (None, found.name) else _rule(wanted.name or "", found)
    if rule is None:
        raise UnsupportedError(
            f"optimizer.{_asked(wanted)}, but the recorded optimizer is none of {', '.join(RULES)}",
            hint="name another with --set optimizer.name=..., or profile with the kernel that you want",
        )
    check_limits(name or "the recorded optimizer", rule.needs, plan)
    kernel = wanted.kernel or (found.kernel if rule is found.rule else next(iter(rule.kernels)))
    if kernel not in rule.kernels:
        raise UsageError(
            f"{name} has no kernel {kernel}; it has {', '.join(rule.kernels)}", hint="leave optimizer.kernel out"
        )
    return _Replacement(trace, found, rule, kernel, plan).run(known, threads_of(trace, cluster))


def _asked(wanted: Optimizer) -> str:
    if wanted.kernel:
        return f"kernel is {wanted.kernel}"
    return f"state is {wanted.state}" if wanted.state else "in_backward is true"


def threads_of(trace: Trace, cluster: Cluster | None) -> Threads | None:
    """Of the GPU that the step is for."""
    if cluster is None and not trace.origin.gpu:
        return None
    with suppress(UsageError):  # a GPU of the user's own, whose file is not told
        device = cluster.device if cluster else find_device(trace.origin.gpu or "")
        return Threads(sm_count=device.sm_count, per_sm=device.threads_per_sm)
    return None


def _rule(name: str, found: Recorded) -> Rule:
    """What the optimizer called `name` does; from SGD to SGD weight decay stays."""
    was_sgd = found.rule is not None and found.rule.sgd
    if RULES[name].sgd and was_sgd:
        return sgd(decayed=found.decayed, momentum=name == "momentum")
    return RULES[name]


class _Replacement:
    """One update in the place of another."""

    def __init__(self, trace: Trace, found: Recorded, rule: Rule, kernel: str, plan: Plan) -> None:
        self.trace, self.found, self.rule, self.kernel = trace, found, rule, kernel
        self.draft, self.wanted = Draft(trace), plan.optimizer
        self.hidden = hidden_of(trace) if rule.hidden_states else frozenset()

    def run(self, known: Mapping[int, Life], threads: Threads | None) -> Trace:
        """The trace to be."""
        trace, found, draft = self.trace, self.found, self.draft
        inside = set(found.ops)
        gone = {i for i, s in known.items() if i not in trace.pinned and s.uses and inside.issuperset(s.uses)}
        gone |= found.states
        update = Update(draft, threads)
        parts = [self._entries(update, group) for group in found.groups]
        draft.pinned -= gone
        if self.wanted.in_backward:
            self._as_they_come(update, [entry for some in parts for entry in some], known, gone)
        else:
            for some in parts:
                self._emit(update, some)
            self._in_its_place(update.ops, gone, [update.whole(entry.grad) for some in parts for entry in some])
        for i in gone:
            del draft.storages[i]
        return draft.finish()

    def _emit(self, update: Update, entries: Sequence[Entry]) -> None:
        if self.wanted.state is None:
            self.rule.kernels[self.kernel](update, entries)
            return
        for entry in entries:
            update_narrow(update, entry, self.rule.kernels[self.kernel])

    def _entries(self, update: Update, group: Sequence[int]) -> list[Entry]:
        """The parameters of a group, hidden ones first where they are treated otherwise."""
        tensors = [(i, tensor) for i in group for tensor in self.draft.storages[i].tensors]
        tensors.sort(key=lambda pair: updated(pair[1]) not in self.hidden)
        return [self._entry(update, i, tensor) for i, tensor in tensors if updated(tensor) in self.found.grads]

    def _entry(self, update: Update, target: int, tensor: Part) -> Entry:
        """One parameter with the states that it gets."""
        draft, found, key = self.draft, self.found, updated(tensor)
        (module, owner), hidden, param = key, key in self.hidden, update.part(target, tensor)
        layout = self.rule.hidden_states if hidden and self.rule.hidden_states else self.rule.states[self.kernel]
        states = {}
        for name, like in narrow_states(layout(update.storage(param)), self.wanted.state).items():
            state = storage_like(like, kind=Kind.OPTIMIZER, module=module, name=f"{owner}.{name}", saved=False)
            states[name] = draft.add(state)
        draft.pinned.update(states.values())
        copy = update.part(found.owners[target], tensor) if found.owners[target] != target else None
        grad = update.part(found.grads[key], tensor)
        return Entry(param=param, grad=grad, states=states, copy=copy, hidden=hidden)

    def _in_its_place(self, new: Sequence[Op], gone: set[int], grads: Sequence[int]) -> None:
        """The update where the recorded one was; what goes with its last op of `grads` goes in their order."""
        trace, found = self.trace, self.found
        inside, first, last = set(found.ops), found.ops[0], found.ops[-1]
        kept = {k: tuple(e for e in trace.ops[k].events if e.storage >= 0 and e.storage not in gone) for k in inside}
        early = tuple(e for k in found.ops[:-1] for e in kept[k])
        masters = {t: p for t, p in found.owners.items() if t != p}
        ops: list[Op] = []
        for k, op in enumerate(trace.ops):
            if k == first:
                ops += _with_events(new, early, _in_order(kept[last], grads))
            if k not in inside and not (self.kernel == "fused" and _casts(op, masters)):
                ops.append(op if gone.isdisjoint(e.storage for e in op.events) else _without(op, gone))
        self.draft.ops = ops

    def _as_they_come(
        self, update: Update, entries: Sequence[Entry], known: Mapping[int, Life], gone: set[int]
    ) -> None:
        """Each parameter's update when autograd's node that completes its gradient is done; the gradient then goes."""
        trace, draft = self.trace, self.draft
        at: dict[int, list[tuple[int, list[Op]]]] = {}
        parts = Counter(update.whole(entry.grad) for entry in entries)
        freed = set(parts)
        for entry in sorted(entries, key=partial(_place, update)):
            grad = update.whole(entry.grad)
            uses = [k for k in known[grad].uses if trace.ops[k].phase is Phase.BACKWARD]
            update.ops = []
            self._emit(update, [entry])
            parts[grad] -= 1
            update.free(() if parts[grad] else (grad,))
            ops_of_it = [op_like(op, phase=Phase.BACKWARD) for op in update.ops]
            at.setdefault(_end_of_node(trace, uses[-1]), []).append((uses[-1], ops_of_it))
        draft.pinned -= freed
        inside, ops = set(self.found.ops), list[Op]()
        for k, op in enumerate(trace.ops):
            kept = tuple(e for e in op.events if e.storage not in gone and not (e.nbytes < 0 and e.storage in freed))
            if k not in inside:
                ops.append(op if len(kept) == len(op.events) else op_like(op, events=kept))
            elif left := tuple(e for e in kept if e.storage >= 0):
                ops[-1] = op_like(ops[-1], events=(*ops[-1].events, *left))
            for _, mine in sorted(at.get(k, ()), key=lambda pair: -pair[0]):
                ops += mine
        draft.ops = ops


def _end_of_node(trace: Trace, k: int) -> int:
    """The last op of the node that op `k` is a part of: a layer's bias gets its gradient after the weight."""
    ops, storages = trace.ops, trace.storages
    while k + 1 < len(ops):
        op, following = ops[k], ops[k + 1]
        alike = op.module == following.module and op.phase is following.phase and bool({*op.reads} & {*following.reads})
        if not alike or len(following.reads) > 1 or not any(storages[i].kind is Kind.GRAD for i in following.writes):
            break
        k += 1
    return k


def _place(update: Update, entry: Entry) -> int:
    """Of a gradient among those that lie in one storage, which came in that order."""
    names = [tensor.name for tensor in update.storage(update.whole(entry.grad)).parts]
    return names.index(update.storage(entry.param).name) if entry.grad != update.whole(entry.grad) else 0


def _in_order(events: tuple[Event, ...], grads: Sequence[int]) -> tuple[Event, ...]:
    """`events` with those of `grads` in their order, where they are: groups of hidden matrices come before others."""
    place = {grad: n for n, grad in enumerate(grads)}
    mine = iter(sorted((e for e in events if e.storage in place), key=lambda e: place[e.storage]))
    return tuple(next(mine) if e.storage in place else e for e in events)


def _casts(op: Op, masters: Mapping[int, int]) -> bool:
    """Whether an op writes master weights back, and does no more: a fused kernel does that itself."""
    return op.phase is Phase.STEP and bool(op.reads) and list(dict.fromkeys(map(masters.get, op.reads))) == [*op.writes]


def _with_events(ops: Sequence[Op], early: tuple[Event, ...], late: tuple[Event, ...]) -> list[Op]:
    """What else is let go during the update goes with its first op and its last."""
    found = list(ops)
    found[0] = op_like(found[0], events=(*found[0].events, *early))
    found[-1] = op_like(found[-1], events=(*found[-1].events, *late))
    return found


def _without(op: Op, gone: set[int]) -> Op:
    return op_like(op, events=tuple(e for e in op.events if e.storage not in gone))
