"""`loss`: a cross entropy by chunks of rows; with `fused` the product that makes its logits goes by chunks too.

    recorded   mm -> logits    [cast]  log_softmax -> chances, nll      backward  nll  log_softmax [cast] -> g   mm  mm
    chunks     mm -> logits    r rows: [cast] log_softmax, gather       backward  r rows: the same, -> g         mm  mm
    fused                      r rows: mm [cast] log_softmax, gather, -> g of r rows  mm  mm     backward  scale both

Logits that the program holds in another type are not cast, and with `fused` it holds hidden states in their place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.first_step import has_own_workspace
from dnnmem.estimator.passes.draft import Draft, lives
from dnnmem.estimator.passes.loss_pieces import Pieces
from dnnmem.estimator.passes.loss_site import Site, find_head, find_sites
from dnnmem.estimator.plan import Loss, Plan
from dnnmem.estimator.trace import Event, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with its cross entropy as `plan.loss` says; unchanged where that is the default.

    Raises `UnsupportedError` for a step without a cross entropy of logits, and for what `check_loss` refuses.
    """
    del cluster
    if plan.loss == Loss():
        return trace
    check_loss(plan)
    sites = find_sites(trace, lives(trace.ops))
    if not sites:
        raise UnsupportedError(
            f"loss.chunks and loss.fused find no cross entropy of logits in {trace.origin.target or 'this step'}",
            hint="leave loss.chunks and loss.fused out",
        )
    for _ in sites:
        site = find_sites(trace, lives(trace.ops))[0]  # the ones before are gone
        trace = _fused(trace, plan, site) if plan.loss.fused else _chunked(trace, plan, site)
    return trace


def check_loss(plan: Plan) -> None:
    """Raise `UnsupportedError` for what does not go together with a loss by chunks."""
    if plan.precision.compute == "fp16_amp":
        raise UnsupportedError(
            "loss.chunks and loss.fused make gradients of logits before fp16_amp's scale is known to them",
            hint="--set precision.compute=bf16_amp",
        )
    if plan.loss.fused and plan.splits_parameters:
        raise UnsupportedError(
            f"loss.fused needs the whole vocabulary's matrix when the loss is taken, but {plan.sharding.strategy} has "
            "let go of it",
            hint="--set loss.fused=false --set loss.chunks=8",
        )
    if plan.mesh.tp > 1:
        raise UnsupportedError(
            f"loss.chunks and loss.fused need all logits of a row, which tp {plan.mesh.tp} splits",
            hint="--set tensor.loss_parallel=true, and leave them out",
        )


def _chunked(trace: Trace, plan: Plan, site: Site) -> Trace:
    known = lives(trace.ops)
    pieces = Pieces(trace, trace.ops[site.forward[-1]], trace.storages[site.logits], plan.loss.chunks)
    first, second = site.forward[-1], site.backward[-1]
    held = max(
        [known[i].freed for k in site.forward for i in trace.ops[k].writes if not trace.storages[i].saved] + [-1]
    )
    rewriter = _Rewriter(trace, {*site.forward, *site.backward}, {site.loss, site.gradient})
    rewriter.before[first] = pieces.losses(site.logits, site.loss)
    rewriter.before[second] = pieces.gradients(site.logits, site.gradient, trace.ops[site.made].module)
    rewriter.storages.update(pieces.storages)
    rewriter.freed[site.logits] = max(known[site.logits].freed, held, second)
    rewriter.freed.update(dict.fromkeys(pieces.kept, known[site.loss].freed))
    _free_targets(rewriter, site)
    return rewriter.run()


def _fused(trace: Trace, plan: Plan, site: Site) -> Trace:
    known = lives(trace.ops)
    head = find_head(trace, known, site)
    if head is None:
        raise UnsupportedError(
            "loss.fused needs a linear layer whose output goes into the loss and nowhere else",
            hint="--set loss.fused=false --set loss.chunks=8",
        )
    pieces = Pieces(trace, trace.ops[site.forward[-1]], trace.storages[site.logits], plan.loss.chunks)
    first, second = site.forward[-1], site.backward[0]
    gone = {*site.forward, *site.backward, *head.forward, *head.backward}
    kept = {site.loss, *head.gradients}
    held = [
        known[i].freed for k in (*site.forward, site.made) for i in trace.ops[k].writes if not trace.storages[i].saved
    ]
    rewriter = _Rewriter(trace, gone, kept)
    rewriter.before[first] = pieces.fused(head, site.loss)
    rewriter.before[second] = pieces.scaled(head, trace.ops[second])
    rewriter.storages.update(pieces.storages)
    later = [k for k in known[head.hidden].uses if k not in gone]
    freed = known[head.hidden].freed
    rewriter.freed[head.hidden] = max([*held, *later, first, *([freed] if freed not in gone else [])])
    rewriter.storages[head.hidden] = storage_like(
        trace.storages[head.hidden], saved=any(trace.ops[k].phase is Phase.BACKWARD for k in later)
    )
    _free_targets(rewriter, site)
    return _one_thread(_summed_in_place(rewriter.run(), head.of_weight))


def _one_thread(trace: Trace) -> Trace:
    """Where the head's products were the backward pass's only ones, its thread has no workspace of cuBLAS any more."""
    spaces = [i for i in sorted(trace.pinned) if trace.storages[i].name == "workspace"]
    backward = (op for op in trace.ops if op.phase is Phase.BACKWARD)
    if len(spaces) < 2 or any(op.flops and not has_own_workspace(op) for op in backward):
        return trace
    gone = spaces[1]
    storages = {i: s for i, s in trace.storages.items() if i != gone}
    setup = tuple(e for e in trace.setup if e.storage != gone)
    return replace(trace, storages=storages, setup=setup, pinned=trace.pinned - {gone})


def _summed_in_place(trace: Trace, first: int | None) -> Trace:
    """Autograd adds the gradient of a tied embedding into the head's, which is no view any more but a tensor."""
    for k, op in enumerate(trace.ops):
        if op.phase is Phase.BACKWARD and op.name == "aten.add.Tensor" and op.reads[:1] == (first,):
            total = op.writes[0]
            ops = [renamed(other, {op.reads[0]: total}) for other in trace.ops[: k + 1]]
            events = tuple(e for e in ops[k].events if e.storage != total)
            ops[k] = op_like(ops[k], name="aten.add_.Tensor", events=events)
            return replace(trace, ops=(*ops, *trace.ops[k + 1 :]))
    return trace


def _free_targets(rewriter: _Rewriter, site: Site) -> None:
    """Classes that autograd kept for the backward pass are not kept any more."""
    ops, known = rewriter.trace.ops, lives(rewriter.trace.ops)
    last = site.forward[-1]
    for i in ops[last].reads:
        if i in known and known[i].freed in site.backward and i not in {*rewriter.freed, *rewriter.lost}:
            rewriter.freed[i] = last


class _Rewriter:
    """A trace that loses ops: what goes before where they were, and which storages are made and freed elsewhere."""

    def __init__(self, trace: Trace, gone: set[int], kept: set[int]) -> None:
        """`kept`: storages that ops which go have made, and that other ops make now."""
        self.trace, self.gone, self.kept = trace, gone, kept
        self.before: dict[int, list[Op]] = {}
        """Ops that come in the place of one that goes."""
        self.freed: dict[int, int] = {}
        """Storage -> op after which it is freed instead."""
        self.storages = dict(trace.storages)
        known = lives(trace.ops)
        self.lost = {i for k in gone for i in trace.ops[k].writes if known[i].made == k} - kept

    def run(self) -> Trace:
        """The trace without them."""
        ops: list[Op] = []
        ends: dict[int, list[int]] = {}
        for i, k in self.freed.items():
            ends.setdefault(k, []).append(i)
        for k, op in enumerate(self.trace.ops):
            left = tuple(e for e in op.events if self._stays(e, k))
            new = tuple(Event(-self.storages[i].nbytes, 0, i) for i in ends.get(k, ()) if self.storages[i].nbytes)
            if k not in self.gone:
                is_same = len(left) == len(op.events) and not new
                ops.append(op if is_same else op_like(op, events=(*left, *new)))
                continue
            ops += self.before.get(k, ())
            if left or new:
                ops[-1] = op_like(ops[-1], events=(*ops[-1].events, *left, *new))
        storages = {i: s for i, s in self.storages.items() if i not in self.lost}
        ops = [_without(op, self.lost) for op in ops]
        return Draft(replace(self.trace, ops=tuple(ops), storages=storages)).finish()

    def _stays(self, event: Event, k: int) -> bool:
        if event.storage in self.lost or (k in self.gone and event.storage < 0):
            return False
        if event.nbytes < 0:
            return event.storage not in self.freed
        return k not in self.gone or event.storage not in self.kept


def _without(op: Op, lost: set[int]) -> Op:
    """What the program lets go of is there."""
    if any(i in lost for i in op.releases):
        return op_like(op, releases=tuple(i for i in op.releases if i not in lost))
    return op
