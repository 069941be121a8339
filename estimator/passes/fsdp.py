"""ZeRO-3 as PyTorch's FSDP2 does it: parameters live in parts, and are gathered group by group just before their use.

    forward    gather b0 | copy out b0, [b0] free | gather, copy out b1, [b0's buffer free, b1] free | ...
    backward   copy out b2, gather b1, [b2'] free, copy in, scatter g2 | copy out b1, gather b0, [b1'] ...

What is allocated when follows torch/distributed/fsdp/_fully_shard: a forward gather is issued by the block itself, but
runs beside the compute of the block before it, since nothing holds its stream back; its flat buffer stays until the
next block has copied out, or the model is through. With `prefetch` it is issued, and allocated, so many blocks ahead. A
backward gather is issued one block ahead, or as many, and its buffer goes with its copies. The input of a
reduce-scatter stays until the next one is made; its output is the gradient at rest, one storage for a group. Flat
buffers come from pools of the streams that they are used on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from dnnmem.estimator.passes.draft import Draft, lives, made_storage
from dnnmem.estimator.passes.fsdp_groups import Group, begin_of, find_groups, gathers_at, is_last
from dnnmem.estimator.passes.fsdp_parts import (
    GATHER_STREAM,
    SCATTER_STREAM,
    chunk_table,
    free_after,
    is_made,
    merge_gradients,
    pad_late,
    part_of,
    span,
    without_padding,
)
from dnnmem.estimator.passes.fsdp_stages import drop_at_end, in_order, summed_apart
from dnnmem.estimator.passes.update import gradients, in_type, scale_update, states
from dnnmem.estimator.plan_pipeline import reduces_at_end
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan


def shard(trace: Trace, plan: Plan, rank: int = 0) -> Trace:
    """The part of one `rank` of the plan's, of `trace` under zero3."""
    return _Sharder(trace, plan, rank).run()


class _Sharder:
    def __init__(self, trace: Trace, plan: Plan, rank: int) -> None:
        self.trace, self.plan = trace, plan
        self.number = rank // plan.mesh.tp % plan.mesh.dp_shard
        """The rank's among those that share parameters."""
        self.draft, self.known = Draft(trace), lives(trace.ops)
        self.grads = gradients(trace.storages)
        self.groups = find_groups(trace, split_root=plan.sharding.split_root)
        self.first_backward, _ = span(trace, Phase.BACKWARD)
        self.last_backward = max((k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD), default=-1)
        _, self.last_forward = span(trace, Phase.FORWARD)
        self.experts = {group.path for group in self.groups if group.experts}
        self.parts = {i: self._split(trace.storages[i]) for group in self.groups for i in group.params}
        """The rank's part of each parameter, in its recorded type."""
        self.part_of_grad: dict[tuple[int, int], Storage] = {}
        self.whole: dict[int, int] = {}
        """Parameter -> its gathered storage, of the latest gather."""
        self.sum_of: dict[int, int] = {}
        """Gradient -> the storage of its group's gradients at rest."""
        self.sums: list[int] = []
        """What replicas sum, where it is not the gradient at rest."""
        self.at_end = reduces_at_end(plan)
        """Gradients are sent once a step, before its update, and parameters dropped then."""
        self.sent = Phase.STEP if self.at_end else Phase.BACKWARD
        """Where they are."""

    def run(self) -> Trace:
        """Parts at rest, gathers, scatters."""
        self._at_rest()
        roots = [g for g in self.groups if g.root and (g.forward or g.backward)]
        forward = sorted((g for g in self.groups if g.forward and not g.root), key=lambda g: g.forward[0])
        previous = -1
        for root in roots:
            previous = self._gather_forward(root, 0, 0, -1)
            self._use(root, root.forward)
        self._forward(forward, previous)
        order = sorted((g for g in self.groups if g.backward and not g.root), key=lambda g: -g.forward[-1])
        self._backward(order, forward)
        for root in roots:
            self._use(root, root.backward)
        self._scatter_all(*((in_order([*roots, *forward]), []) if self.at_end else (order, roots)))
        merge_gradients(self.draft, self.sum_of, stay=not self.at_end)
        if self.at_end:
            drop_at_end(self.draft, self.trace, set(self.sum_of.values()))
        return self.draft.finish()

    def _at_rest(self) -> None:
        """Parameters, gradients and states in parts, in their types at rest; the update sees no padding."""
        precision, storages = self.plan.precision, self.trace.storages
        rest = {i: in_type(part, precision.param) for i, part in self.parts.items()}
        for p, mine in self.grads.items():
            rest.update({g: in_type(self._part(g, p), precision.grad or precision.param) for g in mine})
        own = {i: self._own(s, storages[i]) for i, s in rest.items()}
        for i in states(storages):
            own[i] = rest[i] = self._own(in_type(self._split(storages[i]), precision.param), storages[i])
        shares = {i: Fraction(s.nbytes, storages[i].nbytes) for i, s in own.items() if storages[i].nbytes}
        scale_update(self.draft, self.known, shares)
        self.draft.storages.update(rest)
        self.draft.resize({i: s.nbytes for i, s in rest.items()})
        pad_late(self.draft, self.groups, own)

    def _part(self, grad: int, param: int) -> Storage:
        """A gradient is split as its parameter, whatever shape it was made in."""
        known = self.part_of_grad.get((grad, param))
        if known is None:
            whole, shape = self.trace.storages[grad], self.trace.storages[param].shape
            known = self._split(whole if whole.shape == shape else storage_like(whole, shape=shape))
            self.part_of_grad[grad, param] = known
        return known

    def _split(self, storage: Storage) -> Storage:
        """The rank's part."""
        return part_of(storage, self._shared(experts=storage.module in self.experts)[0])

    def _own(self, part: Storage, whole: Storage) -> Storage:
        """What the rank's `part` of a `whole` tensor holds of it: the last ranks may have padding, or nothing else."""
        return without_padding(part, whole, 0 if whole.module in self.experts else self.number)

    def _shared(self, *, experts: bool) -> tuple[int, str]:
        """Ranks that parameters are split over, and their axis: of experts those that hold the same ones."""
        mesh = self.plan.mesh
        return (mesh.dp_shard // mesh.ep, "dp_shard_mod_ep") if experts else (mesh.dp_shard, "dp_shard")

    def _buffers(self, group: Group) -> tuple[int, list[Event]]:
        """A gather's flat buffer, and how it comes to be: with mixed precision the rank's part is cast first."""
        part, ranks = sum(self.parts[i].nbytes for i in group.params), self._shared(experts=group.experts)[0]
        nbytes = part * ranks
        flat = self.draft.add(made_storage(nbytes, Kind.COMM, "all_gather"))
        made = [Event(nbytes, GATHER_STREAM, flat)]
        if self._casts(group):
            cast = -1 - flat  # no other op sees it
            made = [Event(part, GATHER_STREAM, cast), *made, Event(-part, GATHER_STREAM, cast)]
        return flat, made

    def _casts(self, group: Group) -> bool:
        storages = self.trace.storages
        return any(in_type(storages[i], self.plan.precision.param) != storages[i] for i in group.params)

    def _gather(self, group: Group, issue: int, use: int, writes: int) -> None:
        """All-gather before op `issue` for op `use`."""
        ranks, axis = self._shared(experts=group.experts)
        nbytes = sum(self.parts[i].nbytes for i in group.params) * ranks
        gather = Op(
            name=f"dnnmem.all_gather.{axis}", module=self.trace.ops[use].module, phase=self.trace.ops[use].phase,
            lane=Lane.COMM, reads=tuple(group.params), writes=(writes,), moved_bytes=nbytes,
        )  # fmt: skip
        self.draft.before.setdefault(issue, []).append(gather)

    def _copy_out(self, use: int, group: Group, reads: int, events: Sequence[Event], gone: int) -> None:
        """Copies of the gathered parameters before op `use`; `gone` is the buffer that they free."""
        whole = {i: self._whole(i) for i in group.params}
        self.whole.update(whole)
        made = [Event(self.draft.storages[w].nbytes, 0, w) for w in whole.values()]
        if gone >= 0:
            made.append(Event(-self.draft.storages[gone].nbytes, GATHER_STREAM, gone))
        copy = Op(
            name="dnnmem.copy_out.dp_shard", module=self.trace.ops[use].module, phase=self.trace.ops[use].phase,
            reads=(reads,), writes=tuple(whole.values()), events=(*events, *(e for e in made if e.nbytes)),
            moved_bytes=2 * sum(self.draft.storages[w].nbytes for w in whole.values()),
        )  # fmt: skip
        self.draft.before.setdefault(use, []).append(copy)

    def _copy_alone(self, use: int, group: Group, gone: int) -> None:
        """Copies of what one rank holds alone, before op `use`: nothing is gathered, and each is cast by itself."""
        self._copy_out(use, group, group.params[0], (), -1)
        op, casts = self.draft.before[use][-1], self._casts(group)
        made = [e for w in op.events for e in ([Event(w.nbytes, 0, -1), w, Event(-w.nbytes, 0, -1)] if casts else [w])]
        freed = [Event(-self.draft.storages[gone].nbytes, GATHER_STREAM, gone)] if gone >= 0 else []
        self.draft.before[use][-1] = op_like(op, reads=tuple(group.params), events=(*freed, *made))

    def _whole(self, i: int) -> int:
        """A gathered parameter with its padding, in the type that it computes in."""
        nbytes = self.parts[i].nbytes * self._shared(experts=self.trace.storages[i].module in self.experts)[0]
        return self.draft.add(storage_like(self.trace.storages[i], kind=Kind.COMM, nbytes=nbytes))

    def _gather_forward(self, group: Group, issue: int, use: int, previous: int) -> int:
        """Gather early, allocate late; returns the buffer, which the next group's copies free."""
        if self._shared(experts=group.experts)[0] == 1:
            self._copy_alone(use, group, previous)
            return -1
        done = self.draft.add(made_storage(0, Kind.COMM, "gathered"))  # no memory: that the gather is over
        self._gather(group, issue, use, done)
        flat, events = self._buffers(group)
        self._copy_out(use, group, done, events, previous)
        return flat

    def _gather_ahead(self, group: Group, issue: int, use: int, previous: int | None = None) -> int:
        """Gather and allocate early; its copies free the buffer, or the `previous` one. Returns the buffer."""
        if self._shared(experts=group.experts)[0] == 1:
            self._copy_alone(use, group, -1 if previous is None else previous)
            return -1
        flat, events = self._buffers(group)
        self._gather(group, issue, use, flat)
        before = self.draft.before[issue]
        before[-1] = op_like(before[-1], events=tuple(events))
        self._copy_out(use, group, flat, (), flat if previous is None else previous)
        return flat

    def _use(self, group: Group, ops: Iterable[int]) -> None:
        whole = {i: self.whole[i] for i in group.params}
        for k in ops:
            op = self.draft.ops[k]
            if not whole.keys().isdisjoint(op.reads):
                self.draft.ops[k] = op_like(op, reads=tuple(whole.get(i, i) for i in op.reads))

    def _forward(self, order: Sequence[Group], flat: int) -> None:
        """Gather each group before the compute of the one before it, or further ahead; `flat` is the root's."""
        ahead = self.plan.sharding.prefetch
        for n, group in enumerate(order):
            use = group.forward[0]
            if ahead:
                flat = self._gather_ahead(group, order[n - ahead].forward[0] if n >= ahead else 0, use, flat)
            else:
                flat = self._gather_forward(group, order[n - 1].forward[0] if n else min(use, 0), use, flat)
            self._use(group, group.forward)
            if self._reshards(group, order):
                free_after(self.draft, group.forward[-1], [self.whole[i] for i in group.params])
        if flat >= 0:  # no group comes after the last
            free_after(self.draft, max(self.last_forward, order[-1].forward[-1] if order else 0), [flat], GATHER_STREAM)

    def _reshards(self, group: Group, order: Sequence[Group]) -> bool:
        sharding = self.plan.sharding
        if sharding.strategy == "zero2":
            return False
        return sharding.reshard_after_forward and not (sharding.keep_last and is_last(group, order))

    def _backward(self, order: Sequence[Group], forward: Sequence[Group]) -> None:
        """Gather again what was dropped, one group ahead or more."""
        ahead, held = max(self.plan.sharding.prefetch, 1), -1
        for n, group in enumerate(order):
            if group not in forward or self._reshards(group, forward):
                issue = gathers_at(order[n - ahead], order) if n >= ahead else self.first_backward
                flat = self._gather_ahead(group, issue, begin_of(group, order), held if group.again else None)
                held = flat if group.again else held  # as forward: it goes at its end, or with the next one's copies
            if held >= 0 and (group.stops or group is order[-1]):  # at the latest with the next step's first copies
                free_after(self.draft, group.stops or len(self.trace.ops) - 1, [held], GATHER_STREAM)
                held = -1
            self._use(group, group.backward)

    def _scatter_all(self, order: Sequence[Group], roots: Sequence[Group]) -> None:
        """Reduce each group's gradients when they are made; the root's, and those of what has no input, at the end."""
        previous, timely = -1, [group for group in order if group.fed or self.at_end]
        for group in sorted(timely, key=lambda g: g.backward[-1]) if self.experts and not self.at_end else timely:
            previous = self._scatter(group, self.last_backward if self.at_end else group.backward[-1], previous)
        for group in (*roots, *(g for g in reversed(order) if g not in timely)):  # in the order of the model
            previous = self._scatter(group, self.last_backward, previous)
        if previous >= 0:
            free_after(self.draft, self.last_backward, [previous])
        free_after(self.draft, self.last_backward, self.sums, SCATTER_STREAM)

    def _scatter(self, group: Group, k: int, previous: int) -> int:
        """Drop the group's parameters, reduce its gradients after op `k`; returns the input, still alive."""
        dropped = [self.whole[i] for i in group.params]
        mine = [(g, p) for p in group.params for g in self.grads.get(p, ()) if is_made(self.trace, self.known, g)]
        if not mine:
            free_after(self.draft, k, dropped)
            return previous
        storages = self.draft.storages
        dtype = self.plan.precision.reduce or self.plan.precision.grad
        nbytes = sum(in_type(self._part(g, p), dtype).nbytes for g, p in mine) * self._shared(experts=group.experts)[0]
        flat = self.draft.add(made_storage(nbytes, Kind.COMM, "reduce_scatter"))
        whole = [self._summed(group, g, k, dtype) for g, _ in mine]
        gone = [*dropped, *([previous] if previous >= 0 else [])]
        frees = [Event(-storages[w].nbytes, 0, w) for w in whole if storages[w].nbytes]
        events = [Event(-storages[i].nbytes, 0, i) for i in gone if storages[i].nbytes]
        table = chunk_table([in_type(self._part(g, p), dtype).nbytes for g, p in mine])
        copy = Op(
            name="dnnmem.copy_in.dp_shard", module=self.trace.ops[k].module, phase=self.sent,
            reads=(*whole, *gone[len(dropped) :]), writes=(flat,),
            events=(*events, Event(nbytes, 0, flat), *table, *reversed(frees[:-1])),
            moved_bytes=nbytes + sum(storages[w].nbytes for w in whole),
        )  # fmt: skip
        after = self.draft.after.setdefault(k, [])
        after += [copy, *self._reduce(group, k, mine, flat, frees[-1:])]
        return flat

    def _reduce(self, group: Group, k: int, mine: Sequence[tuple[int, int]], flat: int, frees: list[Event]) -> list[Op]:
        """The reduce-scatter and what follows; the last gradient goes when it is issued."""
        rest = self._merged(group, mine)
        nbytes = self.draft.storages[flat].nbytes
        size = self.draft.storages[rest].nbytes
        ranks, axis = self._shared(experts=group.experts)
        out = nbytes // ranks
        stays = not self.at_end and any(g in self.trace.pinned and self.known[g].made < 0 for g, _ in mine)  # sums
        replicas = self.plan.mesh.dp_replicate > 1
        made = [Event(size, SCATTER_STREAM, rest)]
        if stays or out != size:  # a term of the sum, or one in the type of the wire
            term = self.draft.add(made_storage(out, Kind.COMM, "all_reduce")) if replicas else -1 - flat
            made = [Event(out, SCATTER_STREAM, term), *([] if stays else made)]
            if replicas:  # what the replicas sum lives until all have
                self.sums.append(term)
            else:
                made.append(Event(-out, SCATTER_STREAM, term))
        if ranks == 1:  # divided apart
            made = [made[0], Event(out, SCATTER_STREAM, -2 - flat), Event(-out, SCATTER_STREAM, -2 - flat), *made[1:]]
        ops = [
            Op(
                name=f"dnnmem.reduce_scatter.{axis}", module=self.trace.ops[k].module, phase=self.sent,
                lane=Lane.COMM, reads=(flat,), writes=(flat, rest), events=(*made, *frees), moved_bytes=nbytes,
            )
        ]  # fmt: skip
        if replicas:
            name = "dnnmem.all_reduce.dp_replicate"
            ops.append(replace(ops[0], name=name, reads=(rest,), writes=(rest,), events=(), moved_bytes=out))
        return ops

    def _merged(self, group: Group, mine: Sequence[tuple[int, int]]) -> int:
        """The storage that holds a group's gradients at rest."""
        parts = {p: self.draft.storages[g] for g, p in mine}
        like = storage_like(next(iter(parts.values())), shape=(), module=group.path)
        nbytes = sum(s.nbytes for s in parts.values())
        merged = self.draft.add(made_storage(nbytes, Kind.GRAD, "", like))
        self.sum_of.update({g: merged for g, _ in mine})
        return merged

    def _summed(self, group: Group, grad: int, last: int, dtype: str | None) -> int:
        """What is scattered of a gradient: it, or its sum in the type of the wire, which stages keep."""
        whole = self._whole_gradient(grad, last)
        if not self.at_end or in_type(self.draft.storages[whole], dtype) == self.draft.storages[whole]:
            return whole
        return summed_apart(self.draft, whole, dtype, last if group.root else group.backward[-1])

    def _whole_gradient(self, grad: int, last: int) -> int:
        """The gradient before it is scattered: what backward ops make up to op `last`."""
        whole = self.draft.add(self.trace.storages[grad])
        size = self.trace.storages[grad].nbytes
        uses = {k for k in self.known[grad].uses if self.trace.ops[k].phase is Phase.BACKWARD and k <= last}
        if self.known[grad].made >= 0:
            uses.add(self.known[grad].made)
        first, sums = min(uses), grad in self.trace.pinned and self.known[grad].made < 0
        if sums and self.at_end:
            op = self.draft.ops[first - 1]
            self.draft.ops[first - 1] = op_like(op, events=(*op.events, Event(size, 0, whole)))
        for k in uses:
            op = self.draft.ops[k]
            events = tuple(Event(size, e.stream, whole) if e.storage == grad and e.nbytes > 0 else e for e in op.events)
            if k == first and sums and not self.at_end:
                events = (Event(size, 0, whole), *events)
            reads, writes = (tuple(whole if i == grad else i for i in ids) for ids in (op.reads, op.writes))
            self.draft.ops[k] = op_like(op, reads=reads, writes=writes, events=events)
        return whole
