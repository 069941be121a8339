"""ZeRO-3 as PyTorch's FSDP2 does it: parameters live in parts, and are gathered group by group just before their use.

    forward    gather b0 | copy out b0, gather b1, [b0] free | copy out b1, gather b2, [b1] free | ...
    backward   gather b1 | [b2'] copy in, scatter g2 | copy out b1, gather b0, [b1'] copy in, scatter g1 | ...

A group is a block, or all the rest (the root: gathered first, kept until the end). Each gather is issued one group
ahead, so that it runs beside the compute of the group before. As in FSDP2 the flat buffer of a gather stays until the
next group has its own (in the forward pass), and the input of a reduce-scatter until the next one is filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from dnnmem.estimator.block_list import block_lists
from dnnmem.estimator.passes.draft import Draft, lives, made_storage
from dnnmem.estimator.passes.update import gradients, in_type, scale_update, states
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan

GATHER_STREAM = 1
"""Stream of the flat buffers: a pool of their own."""


@dataclass(slots=True, kw_only=True)
class _Group:
    """Parameters that are gathered together, and the ops that use them."""

    root: bool
    params: list[int] = field(default_factory=list)
    forward: list[int] = field(default_factory=list)
    """Ops of the forward pass that read them."""
    backward: list[int] = field(default_factory=list)
    """Ops of the backward pass that read them or write their gradients."""
    flat_bytes: int = 0
    """Of all of them, padded, in the type of the compute."""
    whole: dict[int, int] = field(default_factory=dict)
    """Parameter -> its gathered storage, of the latest gather."""
    flat: int = -1
    """Buffer of the latest gather."""


def part_of(storage: Storage, ranks: int) -> Storage:
    """The largest rank's part: rows of dimension 0, padded up."""
    rows = storage.shape[0] if storage.shape else 1
    if not rows or storage.nbytes % rows:
        return storage_like(storage, nbytes=-(-storage.nbytes // ranks))
    part = -(-rows // ranks)
    return storage_like(storage, nbytes=storage.nbytes // rows * part, shape=(part, *storage.shape[1:]))


def shard(trace: Trace, plan: Plan) -> Trace:
    """The rank's part of `trace` under zero3."""
    return _Sharder(trace, plan).run()


class _Sharder:
    def __init__(self, trace: Trace, plan: Plan) -> None:
        self.trace, self.plan, self.ranks = trace, plan, plan.mesh.dp_shard
        self.draft, self.known = Draft(trace), lives(trace.ops)
        self.grads = gradients(trace.storages)
        self.param_of = {g: p for p, mine in self.grads.items() for g in mine}
        self.groups = self._groups()
        self.first_backward = next((k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD), len(trace.ops))
        self.last_backward = max(
            (k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD), default=len(trace.ops) - 1
        )

    def run(self) -> Trace:
        """Parts at rest, gathers, scatters."""
        self._at_rest()
        forward = sorted((g for g in self.groups if g.forward and not g.root), key=lambda g: g.forward[0])
        roots = [g for g in self.groups if g.root and (g.forward or g.backward)]
        for root in roots:
            self._gather(root, 0, 0, late=False)
        for group in roots:
            self._use(group, group.forward)
        self._forward(forward)
        order = sorted((g for g in self.groups if g.backward and not g.root), key=lambda g: g.backward[0])
        self._backward(order, forward)
        for root in roots:
            self._use(root, root.backward)
        previous = self._scatter_all(order)
        for root in roots:
            previous = self._scatter(root, self.last_backward, previous)
            self._drop(root, self.last_backward)
        if previous is not None:
            self.draft.after[self.last_backward][-1] = self._freeing(
                self.draft.after[self.last_backward][-1], [previous]
            )
        return self.draft.finish()

    def _groups(self) -> list[_Group]:
        lists = block_lists(self.trace)
        found: dict[tuple[str, ...] | None, _Group] = {}
        owner: dict[int, _Group] = {}
        for i, s in self.trace.storages.items():
            if s.kind is not Kind.PARAM or i not in self.trace.pinned:
                continue
            path = next((some.path(n) for some in lists if (n := some.index(s.module)) is not None), None)
            owner[i] = group = found.setdefault(path, _Group(root=path is None))
            group.params.append(i)
            group.flat_bytes += part_of(s, self.ranks).nbytes * self.ranks
        of_grad = {g: owner[p] for g, p in self.param_of.items() if p in owner}
        for k, op in enumerate(self.trace.ops):
            if op.phase is Phase.STEP:
                continue
            readers = {id(owner[i]): owner[i] for i in op.reads if i in owner}
            if op.phase is Phase.BACKWARD:
                readers.update({id(of_grad[i]): of_grad[i] for i in op.writes if i in of_grad})
            for group in readers.values():
                (group.forward if op.phase is Phase.FORWARD else group.backward).append(k)
        return list(found.values())

    def _at_rest(self) -> None:
        """Parameters, gradients and states in parts, in their types at rest."""
        precision, storages = self.plan.precision, self.trace.storages
        kept = [i for group in self.groups for i in group.params]
        rest = {i: in_type(part_of(storages[i], self.ranks), precision.param) for i in (*kept, *states(storages))}
        rest.update({g: in_type(self._part(g), precision.grad or precision.param) for g in self.param_of})
        shares = {i: Fraction(s.nbytes, storages[i].nbytes) for i, s in rest.items() if storages[i].nbytes}
        scale_update(self.draft, self.known, shares)
        self.draft.resize({i: s.nbytes for i, s in rest.items()})
        self.draft.storages.update(rest)

    def _part(self, grad: int) -> Storage:
        """A gradient is split as its parameter, whatever shape it was made in."""
        shape = self.trace.storages[self.param_of[grad]].shape
        return part_of(storage_like(self.trace.storages[grad], shape=shape), self.ranks)

    def _gather(self, group: _Group, issue: int, use: int, *, late: bool, previous: _Group | None = None) -> None:
        """All-gather before op `issue`, and copies of the parameters before op `use`.

        `late` frees the flat buffer at once; else the next group's copies do.
        """
        phase = self.trace.ops[use].phase
        module = self.trace.ops[use].module
        flat = group.flat = self.draft.add(made_storage(group.flat_bytes, Kind.COMM, "all_gather"))
        gather = Op(
            name="dnnmem.all_gather.dp_shard", module=module, phase=phase, lane=Lane.COMM,
            reads=tuple(group.params), writes=(flat,), moved_bytes=group.flat_bytes,
            events=(Event(group.flat_bytes, GATHER_STREAM, flat),),
        )  # fmt: skip
        self.draft.before.setdefault(issue, []).append(gather)
        group.whole = {i: self._whole(i) for i in group.params}
        events = [Event(self.draft.storages[w].nbytes, 0, w) for w in group.whole.values()]
        done = [flat] if late else []
        done += [previous.flat] if previous is not None else []
        events += [Event(-self.draft.storages[f].nbytes, GATHER_STREAM, f) for f in done]
        copy = Op(
            name="dnnmem.copy_out.dp_shard", module=module, phase=phase, reads=(flat,),
            writes=tuple(group.whole.values()), events=tuple(events), moved_bytes=2 * group.flat_bytes,
        )  # fmt: skip
        self.draft.before.setdefault(use, []).append(copy)

    def _whole(self, i: int) -> int:
        """A gathered parameter, in the type that it computes in."""
        return self.draft.add(storage_like(self.trace.storages[i], kind=Kind.COMM))

    def _use(self, group: _Group, ops: Iterable[int]) -> None:
        for k in ops:
            op = self.draft.ops[k]
            self.draft.ops[k] = op_like(op, reads=tuple(group.whole.get(i, i) for i in op.reads))

    def _drop(self, group: _Group, k: int) -> None:
        """Free the gathered parameters after op `k` and what already follows it."""
        self._append_frees(k, list(group.whole.values()))

    def _append_frees(self, k: int, ids: Sequence[int]) -> None:
        after = self.draft.after.get(k)
        if after:
            after[-1] = self._freeing(after[-1], ids)
        else:
            self.draft.ops[k] = self._freeing(self.draft.ops[k], ids)

    def _freeing(self, op: Op, ids: Sequence[int]) -> Op:
        frees = (Event(-self.draft.storages[i].nbytes, GATHER_STREAM if self._flat(i) else 0, i) for i in ids)
        return op_like(op, events=(*op.events, *(e for e in frees if e.nbytes)))

    def _flat(self, i: int) -> bool:
        return self.draft.storages[i].kind is Kind.COMM and self.draft.storages[i].name == "all_gather"

    def _forward(self, order: Sequence[_Group]) -> None:
        """Gather each group before the compute of the one before it."""
        previous: _Group | None = None
        roots = [g for g in self.groups if g.root and g.flat >= 0]
        for n, group in enumerate(order):
            issue = order[n - 1].forward[0] if n else 0
            self._gather(group, issue, group.forward[0], late=False, previous=previous or next(iter(roots), None))
            self._use(group, group.forward)
            if self._reshards(group, order):
                self._drop(group, group.forward[-1])
            previous = group
        left = previous or next(iter(roots), None)
        if left is not None:  # no group comes after the last
            at = left.forward[-1] if left.forward else 0
            self._append_frees(at, [left.flat])

    def _reshards(self, group: _Group, order: Sequence[_Group]) -> bool:
        sharding = self.plan.sharding
        return sharding.reshard_after_forward and not (sharding.keep_last and group is order[-1])

    def _backward(self, order: Sequence[_Group], forward: Sequence[_Group]) -> None:
        """Gather again what was dropped, one group ahead; free it when its gradients are made."""
        for n, group in enumerate(order):
            if group not in forward or self._reshards(group, forward):
                issue = order[n - 1].backward[0] if n else self.first_backward
                self._gather(group, issue, group.backward[0], late=True)
            self._use(group, group.backward)

    def _scatter_all(self, order: Sequence[_Group]) -> int | None:
        previous: int | None = None
        for group in order:
            end = group.backward[-1]
            previous = self._scatter(group, end, previous)
            self._drop(group, end)
        return previous

    def _scatter(self, group: _Group, k: int, previous: int | None) -> int | None:
        """Reduce the group's gradients after op `k`; returns the input of the reduce-scatter, still alive."""
        mine = [g for p in group.params for g in self.grads.get(p, ()) if g in self.known and self._is_made(g)]
        if not mine:
            return previous
        storages, ops = self.trace.storages, self.trace.ops
        whole = {g: self._whole_gradient(g, k) for g in mine}
        dtype = self.plan.precision.reduce or self.plan.precision.grad
        nbytes = sum(in_type(self._part(g), dtype).nbytes * self.ranks for g in mine)
        flat = self.draft.add(made_storage(nbytes, Kind.COMM, "reduce_scatter"))
        frees = [Event(-storages[g].nbytes, 0, w) for g, w in whole.items() if storages[g].nbytes]
        last = [] if previous is None else [Event(-self.draft.storages[previous].nbytes, 0, previous)]
        waits = () if previous is None else (previous,)
        copy = Op(
            name="dnnmem.copy_in.dp_shard", module=ops[k].module, phase=Phase.BACKWARD,
            reads=(*whole.values(), *waits), writes=(flat,), events=(*last, Event(nbytes, 0, flat), *frees),
            moved_bytes=nbytes + sum(storages[g].nbytes for g in mine),
        )  # fmt: skip
        allocated = tuple(
            Event(self.draft.storages[g].nbytes, 0, g)
            for g in mine
            if g not in self.trace.pinned and storages[g].nbytes
        )
        scatter = Op(
            name="dnnmem.reduce_scatter.dp_shard", module=ops[k].module, phase=Phase.BACKWARD, lane=Lane.COMM,
            reads=(flat,), writes=(flat, *mine), events=allocated, moved_bytes=nbytes,
        )  # fmt: skip
        after = self.draft.after.setdefault(k, [])
        after += [copy, scatter]
        if self.plan.mesh.dp_replicate > 1:
            part = nbytes // self.ranks
            after.append(
                replace(scatter, name="dnnmem.all_reduce.dp_replicate", reads=tuple(mine), events=(), moved_bytes=part)
            )
        return flat

    def _is_made(self, grad: int) -> bool:
        return any(
            self.trace.ops[k].phase is Phase.BACKWARD and grad in self.trace.ops[k].writes
            for k in self.known[grad].uses
        )

    def _whole_gradient(self, grad: int, last: int) -> int:
        """The gradient before it is scattered: what backward ops make up to op `last`."""
        whole = self.draft.add(self.trace.storages[grad])
        size = self.trace.storages[grad].nbytes
        uses = {k for k in self.known[grad].uses if self.trace.ops[k].phase is Phase.BACKWARD and k <= last}
        if self.known[grad].made >= 0:
            uses.add(self.known[grad].made)
        first = min(uses)
        for k in uses:
            op = self.draft.ops[k]
            events = tuple(Event(size, e.stream, whole) if e.storage == grad and e.nbytes > 0 else e for e in op.events)
            if k == first and grad in self.trace.pinned:
                events = (Event(size, 0, whole), *events)
            self.draft.ops[k] = op_like(
                op,
                reads=tuple(whole if i == grad else i for i in op.reads),
                writes=tuple(whole if i == grad else i for i in op.writes),
                events=events,
            )
        return whole
