"""Another optimizer, or another kernel of the same: the recorded update makes room for what torch's would do instead.

    recorded   clip | mul lerp mul addcmul sqrt div add addcdiv | free gradients      the update: from the first op over
    adamw, fused    | fused_adamw (in place)                    |                     parameters or states to the last
    adafactor       | norm .. lerp .. mm .. rsqrt .. add, ...   |

Parameters, their order, and groups (recorded lists of `foreach` or `fused`; a loop tells none, and counts as one) stay,
as do their gradients and what else lives in the step. States are new; rules for them are in `optimizer_rules`. With
master weights (the precision pass comes before) these are what is updated, and the cast back follows.

Another kernel computes the same; another algorithm is another training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes.draft import Draft, Life, lives
from dnnmem.estimator.passes.optimizer_rules import RULES, Rule, adamw, sgd
from dnnmem.estimator.passes.optimizer_update import Entry, Update
from dnnmem.estimator.passes.update import gradients
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

MASTER = ".master"
"""What the names of master weights end with."""
_DECAYS = ("aten._foreach_add.List", "aten.add.Tensor")
"""Weight decay that is added to gradients makes new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The update of a step."""

    ops: tuple[int, ...]
    """Indices of its ops."""
    groups: tuple[tuple[int, ...], ...]
    """What it updates, parameters or their master weights, by group."""
    owners: Mapping[int, int]
    """What is updated -> the parameter; itself where there are no master weights."""
    grads: Mapping[int, int]
    """What is updated -> its gradient."""
    states: frozenset[int]
    """The optimizer's storages, master weights left out."""
    name: str | None
    """The algorithm as a plan names it; None = some other."""
    rule: Rule | None
    """What it does; for SGD with momentum and for Adam another than the name's."""
    kernel: str
    """As a plan names it."""
    decayed: bool
    """Weight decay is added to gradients."""


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with the update of `plan.optimizer`; the same object where that is what was recorded.

    Raises `UsageError` for a kernel that the optimizer does not have, `UnsupportedError` for a step without an update
    and for another kernel of an optimizer that is not known.
    """
    del cluster
    wanted = plan.optimizer
    if wanted.name is None and wanted.kernel is None:
        return trace
    known = lives(trace.ops)
    found = recorded_update(trace)
    name = wanted.name or found.name
    if name == found.name and wanted.kernel in (None, found.kernel):
        return trace
    rule = found.rule if wanted.name in (None, found.name) else _rule(wanted.name or "", found)
    if rule is None:
        raise UnsupportedError(
            f"optimizer.kernel is {wanted.kernel}, but the recorded optimizer is none of {', '.join(RULES)}",
            hint="name another with --set optimizer.name=..., or profile with the kernel that you want",
        )
    kernel = wanted.kernel or next(iter(rule.kernels))
    if kernel not in rule.kernels:
        raise UsageError(
            f"{name} has no kernel {kernel}; it has {', '.join(rule.kernels)}", hint="leave optimizer.kernel out"
        )
    return _replaced(trace, known, found, rule, kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where the update of a step is, and over what."""

    ops: tuple[int, ...]
    """Indices of its ops; none where the step has no update."""
    owners: Mapping[int, int]
    """What is updated -> the parameter; itself where there are no master weights."""
    states: frozenset[int]
    """The optimizer's storages, master weights left out."""


def find_update(trace: Trace) -> Span:
    """The update of `trace`."""
    storages = trace.storages
    params = {(s.module, s.name): i for i, s in storages.items() if s.kind is Kind.PARAM and i in trace.pinned}
    masters = {
        params[key]: i
        for i, s in storages.items()
        if s.kind is Kind.OPTIMIZER
        and s.name.endswith(MASTER)
        and (key := (s.module, s.name.removesuffix(MASTER))) in params
    }
    owners = {masters.get(p, p): p for p in params.values()}
    states = frozenset(i for i in trace.pinned if storages[i].kind is Kind.OPTIMIZER and i not in owners)
    return Span(ops=tuple(_span(trace, owners.keys() | states)), owners=owners, states=states)


def recorded_update(trace: Trace) -> Recorded:
    """The update of `trace`. Raises `UnsupportedError` where there is none."""
    span, storages = find_update(trace), trace.storages
    mine, owners, states = span.ops, span.owners, span.states
    if not mine:
        raise UnsupportedError(
            "the recorded step has no update of its parameters, so there is no optimizer to change",
            hint="profile a step that ends with optimizer.step()",
        )
    ops = [trace.ops[k] for k in mine]
    read = {i for op in ops for i in op.reads}
    found = gradients(storages)
    grads = {t: next((g for g in found.get(p, ()) if g in read), -1) for t, p in owners.items()}
    kernel = _kernel(ops)
    decayed = any(op.name in _DECAYS and any(i in owners for i in op.reads) for op in ops)
    name, rule = _algorithm({storages[i].name.partition(".")[2] for i in states}, decayed=decayed)
    groups = _groups(ops, [t for t in owners if grads[t] >= 0])
    if kernel == "for_loop" or name == "adafactor":  # which goes by shapes
        groups = (tuple(sorted(chain(*groups))) if kernel != "for_loop" else tuple(chain(*groups)),)
    return Recorded(
        ops=mine, groups=groups, owners=owners, grads=grads, states=states,
        name=name, rule=rule, kernel=kernel, decayed=decayed,
    )  # fmt: skip


def _span(trace: Trace, own: Iterable[int]) -> list[int]:
    """From the first op of the step's end that touches parameters or states to the last that writes one."""
    own = set(own)
    steps = [k for k, op in enumerate(trace.ops) if op.phase is Phase.STEP and op.lane is Lane.COMPUTE]
    written = [k for k in steps if not own.isdisjoint(trace.ops[k].writes)]
    if not written:
        return []
    first = next(k for k in steps if not own.isdisjoint((*trace.ops[k].reads, *trace.ops[k].writes)))
    before = [k for k in steps if k < first]
    if before and not trace.ops[before[-1]].writes and "_foreach_add_" in trace.ops[before[-1]].name:
        first = before[-1]  # steps are counted on the host
    return [k for k in steps if first <= k <= written[-1]]


def _kernel(ops: Sequence[Op]) -> str:
    names = [op.name for op in ops]
    if any("_fused_" in name for name in names):
        return "fused"
    return "foreach" if any("_foreach_" in name for name in names) else "for_loop"


def _algorithm(states: set[str], *, decayed: bool) -> tuple[str | None, Rule | None]:
    """Its name, and what it does, by the names of its states."""
    if states - {"step"} == {"exp_avg", "exp_avg_sq"}:
        return None if decayed else "adamw", adamw(decayed=decayed)
    if not states:
        return "sgd", sgd(decayed=decayed)
    if states == {"momentum_buffer"}:
        return None, sgd(decayed=decayed, momentum=True)
    if states <= {"row_var", "col_var", "variance"}:
        return "adafactor", RULES["adafactor"]
    return None, None


def _rule(name: str, found: Recorded) -> Rule:
    """What the optimizer called `name` does; from SGD to SGD weight decay stays."""
    was_sgd = found.rule is not None and found.rule.sgd
    return sgd(decayed=found.decayed) if name == "sgd" and was_sgd else RULES[name]


def _groups(ops: Sequence[Op], targets: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Lists that ops work on together, in order."""
    left, groups = dict.fromkeys(targets), list[tuple[int, ...]]()
    for op in ops:
        here = tuple(i for i in dict.fromkeys(op.writes) if i in left)
        if here:
            groups.append(here)
            for i in here:
                del left[i]
    return tuple(groups)


def _replaced(trace: Trace, known: Mapping[int, Life], found: Recorded, rule: Rule, kernel: str) -> Trace:
    draft = Draft(trace)
    inside = set(found.ops)
    gone = {i for i, s in known.items() if i not in trace.pinned and s.uses and inside.issuperset(s.uses)}
    update = Update(draft)
    for group in found.groups:
        entries = [_entry(draft, found, target, rule, kernel) for target in group]
        rule.kernels[kernel](update, entries)
    gone |= found.states
    first, last = found.ops[0], found.ops[-1]
    kept = {k: tuple(e for e in trace.ops[k].events if e.storage >= 0 and e.storage not in gone) for k in found.ops}
    early = tuple(e for k in found.ops[:-1] for e in kept[k])
    masters = {t: p for t, p in found.owners.items() if t != p}
    ops: list[Op] = []
    for k, op in enumerate(trace.ops):
        if k == first:
            ops += _with_events(update.ops, early, kept[last])
        if k not in inside and not (kernel == "fused" and _casts(op, masters)):
            ops.append(op if gone.isdisjoint(e.storage for e in op.events) else _without(op, gone))
    draft.ops = ops
    draft.pinned -= gone
    for i in gone:
        del draft.storages[i]
    return draft.finish()


def _casts(op: Op, masters: Mapping[int, int]) -> bool:
    """Whether an op writes master weights back, and does no more: a fused kernel does that itself."""
    return op.phase is Phase.STEP and bool(op.reads) and [masters.get(i) for i in op.reads] == list(op.writes)


def _entry(draft: Draft, found: Recorded, target: int, rule: Rule, kernel: str) -> Entry:
    """One parameter with the states that it gets."""
    owner = draft.storages[found.owners[target]]
    states = {}
    for name, layout in rule.states[kernel](draft.storages[target]).items():
        state = storage_like(layout, kind=Kind.OPTIMIZER, module=owner.module, name=f"{owner.name}.{name}", saved=False)
        states[name] = draft.add(state)
    draft.pinned.update(states.values())
    copy = found.owners[target] if found.owners[target] != target else None
    return Entry(param=target, grad=found.grads[target], states=states, copy=copy)


def _with_events(ops: Sequence[Op], early: tuple[Event, ...], late: tuple[Event, ...]) -> list[Op]:
    """What else is let go during the update goes with its first op and its last."""
    found = list(ops)
    found[0] = op_like(found[0], events=(*found[0].events, *early))
    found[-1] = op_like(found[-1], events=(*found[-1].events, *late))
    return found


def _without(op: Op, gone: set[int]) -> Op:
    return op_like(op, events=tuple(e for e in op.events if e.storage not in gone))
