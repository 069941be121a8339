"""The update in a recorded step: which ops it is, over what, and which optimizer of those that a plan can name.

    recorded   clip | mul lerp mul addcmul sqrt div add addcdiv | free gradients      the update: from the first op over
                                                                                      parameters or states to the last

Groups are the lists that ops of `foreach` or `fused` work on; a loop tells none, and counts as one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.first_step import MASTER
from dnnmem.estimator.hidden import Name
from dnnmem.estimator.passes.optimizer_rule import Rule
from dnnmem.estimator.passes.optimizer_rules import RULES
from dnnmem.estimator.passes.optimizer_torch import adamw, sgd
from dnnmem.estimator.passes.update import gradients, trained
from dnnmem.estimator.trace import Kind, Lane, Op, Part, Phase, Trace

_DECAYS = ("aten._foreach_add.List", "aten.add.Tensor")
"""Weight decay that is added to gradients makes new ones."""
_STRANGE = ("mm.", "mm_.", "norm")
"""Parts of names of ops that SGD and Adam have not: products and lengths (Muon, LAMB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The update of a step."""

    ops: tuple[int, ...]
    """Indices of its ops."""
    groups: tuple[tuple[int, ...], ...]
    """What it updates, parameters or their master weights, by group."""
    owners: Mapping[int, int]
    """What is updated -> the parameter; itself where there are no master weights."""
    grads: Mapping[Name, int]
    """Parameter -> its gradient, or what that was cast to for the update."""
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
    params = {
        (t.module, t.name): i
        for i, s in storages.items()
        if s.kind is Kind.PARAM and i in trace.pinned
        for t in s.tensors
    }
    masters: dict[int, list[int]] = {}
    for i, s in storages.items():
        if s.kind is Kind.OPTIMIZER and s.name.endswith(MASTER) and updated(s.tensors[0]) in params:
            masters.setdefault(params[updated(s.tensors[0])], []).append(i)
    owners = {t: p for p in params.values() for t in masters.get(p, [p])}
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
    grads = _gradients(trace, owners, read)
    kernel = _kernel(ops)
    decayed = any(op.name in _DECAYS and any(i in owners for i in op.reads) for op in ops)
    plain = not any(word in op.name for op in ops for word in _STRANGE)
    name, rule = _algorithm({storages[i].name.partition(".")[2] for i in states}, decayed=decayed, plain=plain)
    groups = _groups(ops, [t for t in owners if any(updated(part) in grads for part in storages[t].tensors)])
    if kernel == "for_loop" or name == "adafactor":  # which goes by shapes
        groups = (tuple(sorted(chain(*groups))) if kernel != "for_loop" else tuple(chain(*groups)),)
    return Recorded(
        ops=mine, groups=groups, owners=owners, grads=grads, states=states,
        name=name, rule=rule, kernel=kernel, decayed=decayed,
    )  # fmt: skip


def updated(tensor: Part) -> Name:
    """The parameter that is updated with a tensor, which is that itself or its master weights."""
    return tensor.module, tensor.name.removesuffix(MASTER)


def _gradients(trace: Trace, owners: Mapping[int, int], read: Container[int]) -> dict[Name, int]:
    """Gradients that the update reads, or what they were cast to for it, by parameter."""
    storages, found = trace.storages, gradients(trace.storages, shared=True)
    casts: dict[int, list[int]] = {}
    for op in trace.ops:
        if op.phase is Phase.STEP and "_to_copy" in op.name and len(op.reads) == 1:
            casts.setdefault(op.reads[0], []).extend(op.writes)
    result: dict[Name, int] = {}
    for p in dict.fromkeys(owners.values()):
        for i in (i for g in found.get(p, ()) for i in (g, *casts.get(g, ())) if i in read):
            for tensor in storages[i].tensors:
                result.setdefault(trained(tensor), i)
    return result


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


def _algorithm(states: set[str], *, decayed: bool, plain: bool) -> tuple[str | None, Rule | None]:
    """Its name, and what it does, by the names of its states; not `plain`: what no element alone decides."""
    if states and states <= {"row_var", "col_var", "variance"}:
        return "adafactor", RULES["adafactor"]
    if not plain:
        return None, None
    if states - {"step"} == {"exp_avg", "exp_avg_sq"}:
        return None if decayed else "adamw", adamw(decayed=decayed)
    if not states:
        return "sgd", sgd(decayed=decayed)
    if states == {"momentum_buffer"}:
        return "momentum", sgd(decayed=decayed, momentum=True)
    return None, None


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
