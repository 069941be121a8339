"""Rematerialization: parts of the forward pass run again in the backward pass, and what they make is not kept between.

    forward   [b0: x -> a, b, c -> y]  free a, b, c      ...      backward   [again: x -> a', b', c'] [b0': uses a', c']

`full` and `every` (Chen et al. 2016) do it with whole blocks, `segments` with runs of them, also within each other
(Beaumont et al. 2019), or of a cell's calls (Gruslys et al. 2016). `selective` keeps attention and every second matrix
product, `attention` computes its scores again, `ops` keeps what it names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from dnnmem.estimator.block_calls import calls_of, owners_of
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import Rule, is_attention, parse_keep, rule_of
from dnnmem.estimator.passes.draft import Draft, Life, back_uses, lives
from dnnmem.estimator.passes.remat_frees import (
    free_before_sum,
    free_with_clone,
    hold_inputs,
    is_cast,
    let_go,
    model_end,
    until,
)
from dnnmem.estimator.passes.remat_ops import kept_ops
from dnnmem.estimator.passes.time_steps import check_between, parts_of
from dnnmem.estimator.plan import Remat
from dnnmem.estimator.segments import Run, parse_segments
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

PRODUCTS = frozenset({"aten.mm.default", "aten.addmm.default", "aten.linear.default"})
"""Matrix products of two matrices, those of linear layers."""
BATCHED = frozenset({"aten.bmm.default", "aten.baddbmm.default"})
"""Products of batches of matrices: scores and contexts of attention that is written out."""


@dataclass(slots=True, kw_only=True)
class _Region:
    """What is done again, and for which backward ops."""

    forward: list[int]
    """Ops, in order."""
    backward: list[int]
    """Ops of the block's backward pass, in order."""
    block: int = -1
    """Its number over the model."""
    rule: Rule | None = None
    """Names those of `kept`."""
    kept: set[int] = field(default_factory=set)
    """Those of `forward` whose outputs stay."""
    whole: bool = True
    """False if `backward` holds ops of others too, as for a part of a block."""
    finish: int = -1
    """Backward op with which its input goes, once it is entered."""
    parted: list[int] = field(default_factory=list)
    """Storages that others read too: those read the first ones, its own backward pass what is made again."""


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with recomputation as `plan.remat` says. Raises `UnsupportedError` for a model without blocks."""
    del cluster
    if plan.remat.policy == "none":
        return trace
    if plan.remat.policy == "segments":
        return _segments(trace, plan)
    regions, policy = _regions(trace, plan.remat), plan.remat.policy
    if not regions and policy != "ops":
        raise UnsupportedError(
            f"remat.policy {policy} finds nothing to compute again in {trace.origin.target or 'this step'}: "
            "it needs blocks in a list (ModuleList, Sequential), called as such"
            f"{', with attention' * (policy == 'attention')}",
            hint="--set remat.policy=none",
        )
    if policy in ("selective", "ops") and plan.kernels.fusion == "none":
        trace = _watched(trace, regions)
    for region in regions:
        if region.rule is not None:
            region.kept = kept_ops(trace, region.forward, region.rule, region.block)
    return _entered(trace, regions, plan).finish()


def watched_blocks(trace: Trace) -> tuple[Trace, list[tuple[int, list[int], list[int]]]]:
    """A step as it is under a policy for ops, and of each block its number, forward and backward ops."""
    regions = _regions(trace, Remat(policy="full"))
    return _watched(trace, regions), [(region.block, region.forward, region.backward) for region in regions]


def _watched(trace: Trace, regions: Sequence[_Region]) -> Trace:
    """Biases are added in place to products of more dimensions, unless a dispatch mode watches: the policy is one."""
    draft = Draft(trace)
    known = lives(trace.ops)
    for region in regions:
        for before, k in pairwise(region.forward):
            op = draft.ops[k]
            if op.name != "aten.add_.Tensor" or draft.ops[before].name not in PRODUCTS:
                continue
            [old] = op.writes
            if old not in draft.ops[before].writes:
                continue
            nbytes = draft.storages[old].nbytes
            new = draft.add(draft.storages[old])
            for later in {*known[old].uses, known[old].freed}:
                if later > k:
                    draft.ops[later] = renamed(draft.ops[later], {old: new})
            events = tuple(e if e.storage != old else Event(e.nbytes, e.stream, new) for e in op.events)
            events = (Event(nbytes, 0, new), Event(-nbytes, 0, old), *events)
            draft.ops[k] = op_like(op, name="aten.add.Tensor", writes=(new,), events=events)
    return draft.finish()


def _entered(trace: Trace, regions: Sequence[_Region], plan: Plan) -> Draft:
    draft, known = Draft(trace), lives(trace.ops)
    later: dict[int, int] = {}
    cached = plan.kernels.fusion == "none"  # a compiler keeps only what is used
    ends = model_end(trace)
    readers = {k: region for region in regions for k in region.forward}
    for region in reversed(regions):
        _recompute(draft, region, known, later, early_stop=plan.remat.early_stop, cached=cached, ends=ends)
        _part(draft, region, known, readers)
    for i, k in later.items():
        draft.unfree(known[i].freed, i)
        draft.free(k, i)
        if draft.storages[i].kind is Kind.TEMP:  # nobody had saved it; now a checkpoint does
            draft.storages[i] = storage_like(draft.storages[i], kind=Kind.ACTIVATION, saved=True)
    return draft


def _segments(trace: Trace, plan: Plan) -> Trace:
    """Innermost runs first: what they compute again is, to a run around them, a part of its backward pass."""
    owners, calls, count = parts_of(trace, plan.remat.cell)
    levels = [level := parse_segments(plan.remat.segments, count)]
    while level := tuple(inner for run in level for inner in run.inner):
        levels.append(level)
    for runs in reversed(levels):
        places: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(max(calls, default=0) + 1)]
        for k, owner in enumerate(owners):
            if owner is not None:
                places[calls[k]][owner].append(k)
        regions = [_region(trace.ops, mine, run) for mine in places for run in runs]
        regions = [region for region in regions if region.forward and region.backward]
        if not plan.remat.cell:
            check_between(trace, [region.forward for region in regions])
        draft = _entered(trace, regions, plan)
        for region in regions if runs is not levels[0] else ():
            hold_inputs(draft, region.forward)
        again = [k for k in range(len(owners)) for _ in range(len(draft.before.get(k, ())) + 1)]
        owners, calls = [owners[k] for k in again], [calls[k] for k in again]
        trace = draft.finish()
    return trace


def _region(ops: Sequence[Op], places: Mapping[int, Sequence[int]], run: Run) -> _Region:
    inside = sorted(k for owner, mine in places.items() if owner in run for k in mine)
    return _Region(
        forward=[k for k in inside if ops[k].phase is Phase.FORWARD],
        backward=[k for k in inside if ops[k].phase is Phase.BACKWARD],
    )


def _regions(trace: Trace, remat: Remat) -> list[_Region]:
    owners, count = owners_of(trace)
    calls = calls_of(trace.ops, owners)
    blocks = [_Region(forward=[], backward=[], block=n) for _ in range(max(calls, default=0) + 1) for n in range(count)]
    for k, owner in enumerate(owners):
        if owner is not None and trace.ops[k].phase is not Phase.STEP:
            region = blocks[calls[k] * count + owner]
            (region.forward if trace.ops[k].phase is Phase.FORWARD else region.backward).append(k)
    if remat.policy == "every":
        blocks = [region for region in blocks if region.block % remat.every == remat.every - 1]
    blocks = [region for region in blocks if region.forward and region.backward]
    if remat.policy == "ops":
        rules = parse_keep(remat.keep, count)
        ruled = (replace(region, rule=rule_of(rules, region.block)) for region in blocks)
        return [region for region in ruled if region.rule is not None and not region.rule.whole]
    if remat.policy == "selective":
        kept = (_kept(trace.ops, region.forward, attention=remat.keep_attention) for region in blocks)
        return [replace(region, kept=mine) for region, mine in zip(blocks, kept, strict=True)]
    if remat.policy == "attention":
        return [
            _Region(forward=forward, backward=region.backward, whole=False)
            for region in blocks
            for forward in _attentions(trace.ops, region.forward)
        ]
    return blocks


def _kept(ops: Sequence[Op], forward: Sequence[int], *, attention: bool) -> set[int]:
    """Attention if asked for, and the first, third, ... of the matrix products."""
    products = [k for k in forward if ops[k].name in PRODUCTS]
    scattered = "dnnmem.reduce_scatter.tp"  # what was waited for is kept as well
    others = (k for k in forward if (attention and is_attention(ops[k].name)) or ops[k].name == scattered)
    return {*products[::2], *others}


def _attentions(ops: Sequence[Op], forward: Sequence[int]) -> list[list[int]]:
    """Runs of ops from the scores to the contexts: one op where attention is fused."""
    found = [[k] for k in forward if is_attention(ops[k].name)]
    for at, k in enumerate(forward):
        if not ops[k].name.startswith("aten._softmax"):
            continue
        first = next((a for a in range(at, -1, -1) if ops[forward[a]].name in BATCHED), None)
        last = next((b for b in range(at, len(forward)) if ops[forward[b]].name in BATCHED), None)
        if first is not None and last is not None:
            found.append(list(forward[first : last + 1]))
    return found


def _recompute(
    draft: Draft, region: _Region, known: dict[int, Life], later: dict[int, int], *, early_stop: bool, cached: bool,
    ends: int,
) -> None:  # fmt: skip
    """Enter one region. `later` gathers what must live longer than recorded, each with the op that frees it then.

    With `cached` kept ops' outputs all wait for the recomputation, read or not. The forward pass `ends` with that op.
    """
    ops, end = draft.trace.ops, region.forward[-1]
    inside, backward = set(region.forward), set(region.backward)
    touched = (i for k in region.forward for i in (*ops[k].reads, *ops[k].writes, *(e.storage for e in ops[k].events)))
    made = {  # and True where the forward pass itself frees it
        i: ops[known[i].freed].phase is Phase.FORWARD
        for i in touched
        if i >= 0 and i not in draft.trace.pinned and known[i].made in inside
    }
    kept = {i: None for i in made if known[i].made in region.kept}
    back = {i: back_uses(draft.trace.storages[i], known[i], backward) for i in made}
    copies = set() if region.whole else {k for i in made for k in known[i].uses if _copies(ops[k])}
    gone, both = _dropped([i for i in made if i not in kept], known, back, region, copies)
    if not gone:
        return
    held = {i: k for k in region.forward for i in ops[k].releases}
    wanted = {i: None for i in made if i in gone or i in both}
    start = _node_start(ops, min(k for i in wanted for k in back[i]), backward)
    finish = region.finish = max(k for i in wanted for k in back[i])
    stop = max(k for i in wanted for k in known[i].uses if k in inside and i in ops[k].writes) if early_stop else end
    again = [k for k in region.forward if k <= stop and k not in region.kept]
    places = {i: until(again, known[i].freed, stop) if is_freed else None for i, is_freed in made.items()}
    new = _clone(draft, again, places, wanted, start)
    for k in sorted({k for i in wanted for k in (*known[i].uses, known[i].freed)} & backward):
        draft.ops[k] = renamed(draft.ops[k], {i: new[i] for i in wanted})
    region.parted = both
    _let_all_go(draft, gone, known, users=inside | copies, held=held, ends=ends, new=new)
    needed = {i: None for k in again for i in ops[k].reads if i not in new and i not in draft.trace.pinned}
    for i in (i for i in {**needed, **(kept if cached else {})} if 0 <= known[i].freed < start):
        reader = next((at for at in range(len(again) - 1, -1, -1) if i in ops[again[at]].reads), -1)
        if i in kept and (reader >= 0 or i not in needed):  # others, whose backward passes came before, may read it too
            at = reader if reader >= 0 else max(until(again, known[i].freed, stop), 0)
            free_with_clone(draft, i, known, start, at - len(again))
            later.pop(i, None)
        else:
            later[i] = max(later.get(i, -1), finish)


def _copies(op: Op) -> bool:
    return op.phase is Phase.FORWARD and op.name == "aten.clone.default"


def _let_all_go(
    draft: Draft, gone: Iterable[int], known: Mapping[int, Life], *, users: set[int], held: Mapping[int, int],
    ends: int, new: Mapping[int, int],
) -> None:  # fmt: skip
    """Free what is not kept after the last of its `users`, or with what `held` it; casts when all `ends`."""
    order = {i: n for n, i in enumerate(held)}
    for i in sorted(gone, key=lambda i: order.get(i, -1)):
        last = max(k for k in known[i].uses if k in users)
        let_go(draft, i, ends if is_cast(draft.trace, known[i].made) else max(last, held.get(i, -1)))
        free_before_sum(draft, known[i].freed, new[i])


def _dropped(
    made: Sequence[int], known: dict[int, Life], back: Mapping[int, Sequence[int]], region: _Region, copies: set[int]
) -> tuple[dict[int, None], list[int]]:
    """What the region's backward pass alone reads, in the order in which it was made; and what others read as well.

    `copies` are ops that read, and save nothing.
    """
    inside, backward, end = {*region.forward, *copies}, set(region.backward), region.forward[-1]
    gone = {
        i: None
        for i in made
        if known[i].freed > end and back[i] and all(k in inside or k in backward for k in known[i].uses)
    }
    others = (i for i in made if i not in gone and known[i].freed in backward)
    both = [i for i in others if any(k in backward for k in known[i].uses)] if region.whole else []
    return gone, both


def _node_start(ops: Sequence[Op], k: int, backward: Container[int]) -> int:
    """The first op of the autograd node that runs `k`: a product's unpacks all, then makes both of its gradients."""
    a, b = ops[k - 1], ops[k]
    both = k - 1 in backward and a.module == b.module and {a.name, b.name} <= PRODUCTS | BATCHED
    return k - 1 if both and {*a.reads} & {*b.reads} else k


def _clone(
    draft: Draft, again: Sequence[int], made: Mapping[int, int | None], gone: Container[int], start: int
) -> dict[int, int]:
    """Put copies of ops in front of backward op `start`; the storages that they make are new, those in `gone` stay.

    Of what was `made`, that has a number which the forward pass itself frees: the copy with which the program lets go
    of it, where the op that does so is not done again.
    """
    new: dict[int, int] = {}
    clones: list[Op] = []
    alive: dict[int, int] = {}  # storage of the forward pass -> the last clone that touches its copy
    for k in again:
        op = draft.trace.ops[k]
        events = []
        for event in op.events:
            i = event.storage
            if i in made and event.nbytes > 0:
                new[i] = draft.add(storage_like(draft.trace.storages[i], kind=Kind.TEMP, saved=False))
            if i < 0 or (i in new and (event.nbytes > 0 or i not in gone)):
                events.append(event if i < 0 else Event(event.nbytes, event.stream, new[i]))
            if i in new and event.nbytes < 0:
                alive.pop(i, None)
        freed = {e.storage for e in op.events if e.nbytes < 0}
        alive.update(dict.fromkeys((i for i in (*op.reads, *op.writes) if i in new and i not in freed), len(clones)))
        reads, writes = (tuple(new.get(i, i) for i in ids) for ids in (op.reads, op.writes))
        clones.append(op_like(op, phase=Phase.BACKWARD, reads=reads, writes=writes, events=tuple(events)))
    for i, last in alive.items():
        nbytes = draft.trace.storages[i].nbytes
        if i not in gone and nbytes:
            end = made[i]
            at = last if end is None else max(last, end)
            clones[at] = op_like(clones[at], events=(*clones[at].events, Event(-nbytes, 0, new[i])))
    draft.before.setdefault(start, []).extend(clones)
    return new


def _part(draft: Draft, region: _Region, known: dict[int, Life], readers: Mapping[int, _Region]) -> None:
    """Free what was made first when those outside are done with it; a region that begins with it keeps it."""
    own = {*region.forward, *region.backward}
    for i in region.parted:
        ends = [
            readers[k].finish if k in readers and readers[k].finish >= 0 else k for k in known[i].uses if k not in own
        ]
        draft.free(max(ends), i)
