"""Which parameters FSDP2 gathers together, and where in the step: each block by itself, and what is outside of blocks.

    root          all that is outside of blocks: gathered first, kept until the end of the step
    split root    what comes before the blocks, and what comes after them, as groups of their own (no root is left)
    experts       those of a layer whose tokens are sent, inside of their block's group and apart from it

A group's hooks run before its first op and after its last one, of either pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from dnnmem.estimator.block_list import Path, block_lists
from dnnmem.estimator.passes.draft import Same
from dnnmem.estimator.passes.expert_layers import SENT, owner_of
from dnnmem.estimator.passes.update import gradients
from dnnmem.estimator.trace import Kind, Phase, Trace

LOSS = ("<loss>",)
"""Module of the ops that no module of the model runs."""


@dataclass(slots=True, kw_only=True, eq=False)
class Group:
    """Parameters that are gathered together, and the ops of their modules."""

    root: bool = False
    """True for the model's own: gathered first, never dropped before the end."""
    experts: bool = False
    """True for experts whose tokens are sent: fewer ranks hold the same ones."""
    path: Path = ()
    """Of the block; of the first parameter's module for others."""
    params: list[int] = field(default_factory=list)
    """Storages, in the order of the model."""
    forward: list[int] = field(default_factory=list)
    """Ops of the forward pass that lie in its modules or read its parameters."""
    backward: list[int] = field(default_factory=list)
    """Ops of the backward pass that do, or that write its gradients."""
    fed: bool = True
    """Whether what its modules are given needs a gradient: else only the step's end tells that theirs are done."""
    again: int = 0
    """Of those, the first ones, which compute experts again: FSDP2 takes them for a forward pass."""

    @property
    def hooks(self) -> int:
        """Op before which it gathers the next group in the backward pass."""
        return self.backward[self.again] if self.again < len(self.backward) else self.backward[0]

    @property
    def stops(self) -> int:
        """Last op of what is computed again, if its module is computed to its end: 0 = it is not."""
        last = self.backward[self.again - 1] if self.again else 0
        return last if self.hooks > last + 1 else 0


def find_groups(trace: Trace, *, split_root: bool) -> tuple[Group, ...]:
    """The groups of a step, in the order of the model; not to be changed, as several plans share them."""
    return _known_groups(Same(trace), split_root)


def begin_of(group: Group, groups: Iterable[Group]) -> int:
    """The op before which a group's hooks of the backward pass run: those of a block before those of its experts."""
    size = len(group.path)
    return min(g.backward[0] for g in groups if g is group or (g.experts and g.path[:size] == group.path))


def gathers_at(group: Group, groups: Iterable[Group]) -> int:
    """The op before which a group's hooks of the backward pass gather the next one."""
    return group.hooks if group.experts else begin_of(group, groups)


def is_last(group: Group, order: Sequence[Group]) -> bool:
    """Whether a group is the last of its `order`, or that one's experts."""
    last = next((g for g in reversed(order) if not g.experts), None)
    return last is not None and (group is last or (group.experts and group.path[: len(last.path)] == last.path))


@lru_cache(maxsize=4)
def _known_groups(same: Same[Trace], split_root: bool) -> tuple[Group, ...]:  # noqa: FBT001 - a key
    trace = same.thing
    lists = block_lists(trace)
    sent = {op.module for op in trace.ops if op.name == SENT}

    def block_of(path: Path) -> Path | None:
        experts = owner_of(path, sent)
        if experts is not None:
            return experts
        return next((some.path(n) for some in lists if (n := some.index(path)) is not None), None)

    owner = {i: block_of(s.module) for i, s in trace.storages.items() if s.kind is Kind.PARAM and i in trace.pinned}
    sides = _sides(trace, {i for i, path in owner.items() if path is None}) if split_root else {}
    found: dict[tuple[Path | None, int], Group] = {}
    of_param: dict[int, Group] = {}
    of_module: dict[Path, Group] = {}
    for i, block in owner.items():
        side = sides.get(i, 0)
        module = trace.storages[i].module
        group = found.get((block, side))
        if group is None:
            group = found[block, side] = Group(
                root=block is None and not side, experts=block in sent, path=block or module
            )
        group.params.append(i)
        of_param[i] = group
        if block is None:
            of_module[module] = group
    for path in {op.module for op in trace.ops} - of_module.keys():
        block = block_of(path)
        if block is not None and (block, 0) in found:
            of_module[path] = found[block, 0]
    _place(trace, of_param, of_module)
    needing = _needing_gradients(trace)
    for (block, _), group in found.items():
        group.fed = _is_fed(trace, group, needing, block=block is not None)
    return tuple(found.values())


def _sides(trace: Trace, outside: set[int]) -> dict[int, int]:
    """-1 for parameters of one module that is defined before the blocks, 1 for those of one defined after them.

    Not by use: which modules are one group is said before any has run.
    """
    roots = [some.root for some in block_lists(trace)]
    defined = {module.path: n for n, module in enumerate(trace.modules)}
    inside = [n for path, n in defined.items() if any(path[: len(root)] == root for root in roots)]
    if not inside:
        return {}
    users: dict[int, set[Path]] = {i: {trace.storages[i].module} for i in outside}
    for op in trace.ops:
        if op.phase is Phase.FORWARD:
            for i in op.reads:
                if i in outside and op.module in defined:
                    users[i].add(op.module)
    found: dict[int, int] = {}
    for i, modules in users.items():
        n = defined.get(trace.storages[i].module)
        holds = any(root[: len(trace.storages[i].module)] == trace.storages[i].module for root in roots)
        if n is not None and len(modules) == 1 and not holds and not inside[0] <= n <= inside[-1]:
            found[i] = -1 if n < inside[0] else 1
    return found


def _place(trace: Trace, of_param: dict[int, Group], of_module: dict[Path, Group]) -> None:
    """Fill in the ops of each group."""
    of_grad = {g: of_param[p] for p, mine in gradients(trace.storages).items() if p in of_param for g in mine}
    read, made = of_param.keys(), of_grad.keys()
    for k, op in enumerate(trace.ops):
        phase, own = op.phase, of_module.get(op.module)
        if phase is Phase.STEP:
            continue
        if read.isdisjoint(op.reads) and (phase is Phase.FORWARD or made.isdisjoint(op.writes)):
            if own is not None:
                (own.forward if phase is Phase.FORWARD else own.backward).append(k)
            continue
        groups = {id(group): group for i in op.reads if (group := of_param.get(i)) is not None}
        if phase is Phase.BACKWARD:
            groups.update({id(group): group for i in op.writes if (group := of_grad.get(i)) is not None})
        if own is not None:
            groups[id(own)] = own
        for group in groups.values():
            (group.forward if phase is Phase.FORWARD else group.backward).append(k)
    for group in {id(group): group for group in of_param.values() if group.experts}.values():
        group.again = _computed_again(trace, group)


def _is_fed(trace: Trace, group: Group, needing: Mapping[int, int], *, block: bool) -> bool:
    """Whether a block, or the first module to run of others, is given what an earlier op made of parameters."""
    if not group.forward:
        return True
    first = group.forward[0]
    ops = [trace.ops[k] for k in group.forward]
    run = [op for op in ops if block or op.module == ops[0].module]
    return any(needing.get(i, first) < first for op in run for i in op.reads)


def _needing_gradients(trace: Trace) -> dict[int, int]:
    """The first op of the forward pass that writes each storage which parameters with gradients have gone into."""
    own, found = gradients(trace.storages).keys(), dict[int, int]()
    for k, op in enumerate(trace.ops):
        if op.phase is Phase.FORWARD and not (own.isdisjoint(op.reads) and found.keys().isdisjoint(op.reads)):
            for i in op.writes:
                found.setdefault(i, k)
    return found


def _computed_again(trace: Trace, group: Group) -> int:
    """How many of a group's first ops of the backward pass are those of its forward pass, in their order."""
    names = [trace.ops[k].name for k in group.forward]
    if not group.backward or trace.ops[group.backward[0]].name != names[0]:
        return 0
    left = iter(names)
    return next((n for n, k in enumerate(group.backward) if trace.ops[k].name not in left), len(group.backward))
