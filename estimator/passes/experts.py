"""Expert parallelism (GShard, 2020, arXiv 2006.16668): each rank holds some experts of every layer, tokens travel.

    router -- rows (S, D) in the order of experts -- all_to_all --> rows (R, D) -- experts --> all_to_all -- sums (T, D)

S = tokens x choices leave a rank, R arrive: S with balanced routing, times the stated imbalance on the busiest rank,
which is predicted; with a capacity both are experts x room. The ranks of `ep` are taken from `dp_shard`: the same
experts are then held, and sharded, by dp_shard / ep ranks. What is allocated when follows `profilers/apply`'s hooks:
the module of the experts runs as it is, on the rows that arrived, each with one choice. Which modules hold experts is
*assumed* from their products (`expert_layers`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import SKIPPED, Draft, lives
from dnnmem.estimator.passes.expert_layers import GROUPED, Layer, find_layers
from dnnmem.estimator.passes.expert_sent import Sender
from dnnmem.estimator.passes.update import gradients, scale_update
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """One rank's part of `trace` under `plan.mesh.ep` ranks; unchanged for one.

    Raises `UnsupportedError` for a model without experts, for numbers of them that ep does not divide, and beside tp.
    """
    del cluster
    ep = plan.mesh.ep
    if ep == 1:
        return trace
    if plan.mesh.tp > 1:
        raise UnsupportedError(
            f"ep {ep} beside tp {plan.mesh.tp}: all {plan.mesh.tp} ranks of a tp group have the same tokens, and each "
            f"would send them: {plan.mesh.tp} times the rows, and {plan.mesh.tp} times each expert's gradient",
            hint="--set mesh.tp=1",
        )
    layers = find_layers(trace, ep)
    draft = Draft(trace)
    _divide(draft, layers, ep)
    for layer in layers:
        _Rewriter(draft, layer, plan).run()
    found = draft.finish(
        f"Expert parallel over {ep} ranks: {len(layers)} modules with grouped products are assumed to hold experts; "
        + (
            f"each expert has room for {plan.experts.capacity:g} times the mean number of tokens."
            if plan.experts.capacity is not None
            else f"the busiest rank gets {plan.experts.imbalance:g} times the mean number of tokens, as stated."
        )
    )
    return found if plan.experts.grouped else _one_by_one(found)


def _divide(draft: Draft, layers: list[Layer], ep: int) -> None:
    """Parameters, gradients and states of a rank's own experts."""
    storages = draft.trace.storages
    modules = {layer.module for layer in layers}
    held = {i for i, s in storages.items() if s.kind is Kind.PARAM and s.module in modules}
    mine = held | {g for p, grads in gradients(storages).items() if p in held for g in grads}
    mine |= {i for i, s in storages.items() if s.kind is Kind.OPTIMIZER and s.module in modules and len(s.shape) > 1}
    scale_update(draft, lives(draft.trace.ops), dict.fromkeys(mine, Fraction(1, ep)))
    draft.resize({i: storages[i].nbytes // ep for i in mine})
    for i in mine:
        s = draft.storages[i]
        draft.storages[i] = storage_like(s, shape=(s.shape[0] // ep, *s.shape[1:]))


class _Rewriter:
    """One layer: fewer or more rows inside, and what sends them around it."""

    def __init__(self, draft: Draft, layer: Layer, plan: Plan) -> None:
        self.draft, self.layer = draft, layer
        self.old = draft.trace.storages
        ep, experts = plan.mesh.ep, plan.experts
        sent, arrive = layer.rows, math.ceil(layer.rows * experts.imbalance)
        if experts.capacity is not None:
            sent = arrive = layer.experts * math.ceil(experts.capacity * layer.rows / layer.experts)
        self.arrive, self.ep = arrive, ep
        self.sender = Sender(draft, layer, sent=sent, arrive=arrive, room=experts.capacity is not None)

    def run(self) -> None:
        """The rank's layer, forward and backward."""
        layer, send = self.layer, self.sender
        forward, backward = send.forward_before(), send.backward_before()
        inner = {layer.given: forward.tokens, layer.chosen: forward.chosen, layer.weights: forward.weights}
        inside = {i for k in (*layer.forward, *layer.backward) for i in self.draft.trace.ops[k].writes}
        own = self._resized({i for i in inside if not self._lasts(i)})
        made, given_grad = own.pop(layer.made), own.pop(layer.given_grad)
        weights_grad = own.pop(layer.weights_grad, -1)
        inner |= {layer.made: made, layer.back: backward, layer.given_grad: given_grad}
        if weights_grad >= 0:
            inner[layer.weights_grad] = weights_grad
        for k in (*layer.forward, *layer.backward):
            self._inside(k, inner)
        send.forward_after(made)
        self._free_after_last(backward)
        send.backward_after(given_grad, weights_grad)

    def _lasts(self, i: int) -> bool:
        return self.old[i].kind in (Kind.GRAD, Kind.PARAM)

    def _resized(self, ids: set[int]) -> dict[int, int]:
        """Storages that the layer makes, with the rows of this rank; what leaves it under another id."""
        layer = self.layer
        leave = {layer.made, layer.given_grad, layer.weights_grad} - {-1}
        apart: dict[int, int] = {}
        for i in ids:
            s = self.old[i]
            share = self._share(s)
            shape = (math.ceil(s.shape[0] * share), *s.shape[1:]) if s.shape else s.shape
            new = storage_like(s, nbytes=math.ceil(s.nbytes * share), shape=shape)
            if i in leave:
                apart[i] = self.draft.add(storage_like(new, kind=Kind.TEMP))
            else:
                self.draft.storages[i] = new
        return apart

    def _share(self, s: Storage) -> Fraction:
        """How much of a storage a rank has: rows by choices, by tokens, or by experts."""
        layer = self.layer
        by_rows, by_tokens = Fraction(self.arrive, layer.rows), Fraction(self.arrive, layer.tokens)
        numel, width = math.prod(s.shape), math.prod(self.old[layer.given].shape)
        if s.shape[:1] == (layer.rows,) or s.shape[:2] == (layer.tokens, layer.choices):
            return by_rows
        if s.shape[:1] == (layer.tokens,) or numel == width:
            return by_tokens
        return Fraction(1, self.ep) if s.shape[:1] == (layer.experts,) else Fraction(1)

    def _inside(self, k: int, inner: dict[int, int]) -> None:
        """An op of the experts on the rows of this rank; a copy that spread a gradient over choices is not made."""
        op = self.draft.ops[k]
        spread = op.phase is Phase.BACKWARD and op.name.startswith("aten.clone") and len(op.reads) == 1
        if spread and self.old[op.writes[0]].shape[:2] == (self.layer.tokens, self.layer.choices):
            source = inner.get(op.reads[0], op.reads[0])
            inner[op.writes[0]] = source
            self.draft.ops[k] = op_like(op, name=SKIPPED, events=(), reads=(), writes=())
            return
        outer = {self.layer.given, self.layer.chosen, self.layer.weights, self.layer.back}
        kept = {at: e for at, e in enumerate(op.events) if e.storage in outer}
        kept |= {at: Event(0, e.stream, e.storage) for at, e in kept.items() if e.storage == self.layer.back}
        new = renamed(op, inner)
        events = [kept.get(at, self._event(e, op.events[at])) for at, e in enumerate(new.events)]
        old = sum(self.old[i].nbytes for i in (*op.reads, *op.writes))
        now = sum(self.draft.storages[i].nbytes for i in (*new.reads, *new.writes))
        flops = op.flops * self.arrive // self.layer.rows
        moved = op.moved_bytes * now // old if old else op.moved_bytes
        self.draft.ops[k] = op_like(new, events=tuple(e for e in events if e.nbytes), flops=flops, moved_bytes=moved)

    def _event(self, event: Event, before: Event) -> Event:
        """Sizes of storages as they are now; of temporaries inside an op by the rows in them."""
        if event.storage >= 0:
            nbytes = self.draft.storages[event.storage].nbytes
            return Event(nbytes if before.nbytes > 0 else -nbytes, event.stream, event.storage)
        rows = self.layer.rows
        if before.nbytes % rows:
            return event
        return Event(before.nbytes // rows * self.arrive, event.stream, event.storage)

    def _free_after_last(self, i: int) -> None:
        """What arrived for the gradients goes with the last op that reads it, if no op has it freed already."""
        ops, freed = self.draft.ops, False
        users = [k for k in self.layer.backward if i in ops[k].reads]
        for k in self.layer.backward:
            freed = freed or any(e.storage == i and e.nbytes < 0 for e in ops[k].events)
        if users and not freed:
            self.draft.free(users[-1], i)


def _one_by_one(trace: Trace) -> Trace:
    """Each grouped product as a loop over experts: a product for each, of its share of the rows."""
    ops: list[Op] = []
    for op in trace.ops:
        count = next((s.shape[0] for i in (*op.reads, *op.writes) if len((s := trace.storages[i]).shape) > 2), 1)
        if op.name.rpartition(".")[0] not in GROUPED or count == 1:
            ops.append(op)
            continue
        made = tuple(e for e in op.events if e.nbytes > 0)
        gone = tuple(e for e in op.events if e.nbytes < 0)
        ops += [
            op_like(
                op, name="aten.mm.default", flops=op.flops // count, moved_bytes=op.moved_bytes // count,
                events=(made if n == 0 else ()) + (gone if n == count - 1 else ()),
            )
            for n in range(count)
        ]  # fmt: skip
    return replace(trace, ops=tuple(ops))
