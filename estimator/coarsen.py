"""A trace of few ops that prices like the one it is made of: a run of ops is one, with its seconds and its peak.

    op level   mm  gelu  mm  add | mm' -> grad w | gelu'  mm' -> grad u |       runs end where a pass may cut in: at the
    runs      [   run, 1.2 ms   ]|[     run     ]|[        run         ]|        borders of blocks, at each gradient

Time is kept exactly. In a queue fed by a host, n ops with seconds d and issue times h end at

    max(free + D, issued + H*)      D = sum d,   H* = max over i of (h_1 + .. + h_i + d_i + .. + d_n)

which one op does too that takes D and is issued after H* - D; what is left of the host's time goes to the next op.
Memory is a lower bound that misses nothing but the allocator's waste: a storage that outlives its run keeps its events,
what lives and dies inside is one temporary as high as it ever gets between two of them, in sizes as the allocator
rounds them. So runs serve to order plans and to leave some out; a plan that is told is priced op by op.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dnnmem.estimator.block_list import Path, block_lists
from dnnmem.estimator.passes.expert_layers import SENT, owner_of
from dnnmem.estimator.passes.fsdp_groups import LOSS
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like

NAME = "dnnmem.run"
"""What the names of runs begin with; the rest is their key in `Runs.costs`."""
ROUND_BYTES = 512
"""The allocator hands out multiples of it (`kMinBlockSize`)."""


class Cost(NamedTuple):
    """What a run takes."""

    seconds: float
    """On its lane."""
    issue: float
    """Seconds of the host before it may begin."""
    left: float
    """Seconds of the host that belong to the next op."""


@dataclass(slots=True)
class Runs:
    """The costs of runs by the names of their ops; equal runs have one name, so that `repeat` knows equal blocks."""

    costs: dict[str, Cost] = field(default_factory=dict)
    """By name."""
    names: dict[tuple[object, ...], str] = field(default_factory=dict)
    """By what tells them apart."""

    def name(self, cost: Cost, flops: int) -> str:
        """The name of a run of that cost."""
        key = (*(float(f"{value:.9e}") for value in cost), flops)
        known = self.names.get(key)
        if known is None:
            known = self.names[key] = f"{NAME}.{len(self.names)}"
            self.costs[known] = cost
        return known


def coarsen(trace: Trace, seconds: Sequence[float], host: Sequence[float], runs: Runs) -> Trace:
    """`trace` with its forward and backward ops in runs, given the seconds of each op and of issuing it.

    The update stays as it is: passes scale it.
    """
    ops: list[Op] = []
    inner: set[int] = set()
    born: dict[int, list[tuple[int, int]]] = {}
    for i, (made, freed) in _lives(trace).items():
        if i not in trace.pinned:
            born.setdefault(made, []).append((i, freed))
    for first, end in _spans(trace):
        if trace.ops[first].lane is not Lane.COMPUTE or trace.ops[first].phase is Phase.STEP:
            ops.append(trace.ops[first])
            continue
        gone = {i for k in range(first, end) for i, freed in born.get(k, ()) if k <= freed < end}
        mine = trace.ops[first:end]
        cost = _cost(seconds[first:end], host[first:end])
        ops.append(_run(mine, gone, cost, runs))
        inner |= gone
    storages = {i: s for i, s in trace.storages.items() if i not in inner}
    return Trace(
        ops=tuple(ops), storages=storages, setup=trace.setup, pinned=trace.pinned, modules=trace.modules,
        batch=trace.batch, origin=trace.origin,
    )  # fmt: skip


def live_peak(trace: Trace, kinds: frozenset[Kind] = frozenset(Kind)) -> int:
    """Largest sum of what is alive of these kinds, each block rounded up: the allocator has no less in its blocks."""
    storages = trace.storages
    live = peak = sum(rounded(storages[i].nbytes) for i in trace.pinned if storages[i].kind in kinds)
    chosen = None if len(kinds) == len(Kind) else {i for i, s in storages.items() if s.kind in kinds}
    for op in trace.ops:
        for nbytes, _, i in op.events:
            if chosen is None or i in chosen or (i < 0 and Kind.TEMP in kinds):
                if nbytes > 0:
                    live += -(-nbytes // ROUND_BYTES) * ROUND_BYTES
                    peak = max(peak, live)
                else:
                    live -= -(nbytes // ROUND_BYTES) * ROUND_BYTES
    return peak


def rounded(nbytes: int) -> int:
    """As the allocator rounds it."""
    return -(-nbytes // ROUND_BYTES) * ROUND_BYTES


def _lives(trace: Trace) -> dict[int, tuple[int, int]]:
    """First and last op of what is both made and freed; storages without bytes live as long as they are used."""
    made: dict[int, int] = {}
    last: dict[int, int] = {}
    for k, op in enumerate(trace.ops):
        for i in (*op.reads, *op.writes):
            if i in trace.storages and not trace.storages[i].nbytes and i not in trace.pinned:
                made.setdefault(i, k)
                last[i] = k
        for nbytes, _, i in op.events:
            if i >= 0 and nbytes > 0:
                made.setdefault(i, k)
            elif i >= 0:
                last[i] = k
    return {i: (k, last[i]) for i, k in made.items() if i in last}


def _spans(trace: Trace) -> Iterator[tuple[int, int]]:
    """Where runs begin and end."""
    lists = block_lists(trace)
    owner: dict[Path, object] = {}
    sent = {op.module for op in trace.ops if op.name == SENT}
    for path in {op.module for op in trace.ops}:
        if (experts := owner_of(path, sent)) is not None:
            owner[path] = experts
            continue
        number = next(((some.root, n) for some in lists if (n := some.index(path)) is not None), None)
        owner[path] = number if number is not None else path if path != LOSS else LOSS
    grads = {i for i, s in trace.storages.items() if s.kind is Kind.GRAD}
    unread = {i for i, s in trace.storages.items() if s.kind is Kind.BUFFER and i in trace.pinned}  # may be sent first
    first, key = 0, None
    for k, op in enumerate(trace.ops):
        mine = (op.phase, owner[op.module])
        fresh = not unread.isdisjoint(op.reads)
        unread.difference_update(op.reads)
        if key is not None and (mine != key or fresh or op.lane is not Lane.COMPUTE):
            yield first, k
            first = k
        key = mine
        alone = op.lane is not Lane.COMPUTE or op.phase is Phase.STEP
        if op.lane is Lane.COMM:  # what does not read it need not wait
            unread.update(op.writes)
        used = (*op.reads, *op.writes, *(event[2] for event in op.events))
        touched = op.phase is Phase.BACKWARD and not grads.isdisjoint(used)
        if alone or touched:
            yield first, k + 1
            first, key = k + 1, None
    if first < len(trace.ops):
        yield first, len(trace.ops)


def _cost(seconds: Sequence[float], host: Sequence[float]) -> Cost:
    total, issued, latest = sum(seconds), 0.0, 0.0
    left = total
    for d, h in zip(seconds, host, strict=True):
        issued += h
        latest = max(latest, issued + left)
        left -= d
    issue = max(latest - total, 0.0)
    return Cost(total, issue, max(issued - issue, 0.0))


def _run(ops: Sequence[Op], gone: set[int], cost: Cost, runs: Runs) -> Op:
    flops = sum(op.flops for op in ops)
    made: set[int] = set()
    reads: dict[int, None] = {}
    writes: dict[int, None] = {}
    for op in ops:
        reads.update((i, None) for i in op.reads if i not in gone and i not in made)
        writes.update((i, None) for i in op.writes if i not in gone)
        made.update(e[2] for e in op.events if e[0] > 0)
    return op_like(
        ops[0], name=runs.name(cost, flops), reads=tuple(reads), writes=tuple(writes),
        events=tuple(_events(ops, gone)), flops=flops, masked_flops=sum(op.masked_flops for op in ops),
        moved_bytes=sum(op.moved_bytes for op in ops),
    )  # fmt: skip


def _events(ops: Sequence[Op], gone: set[int]) -> Iterator[Event]:
    """Events of what outlives the run; between them one temporary for all that does not."""
    height = peak = 0
    number = -1
    for op in ops:
        for event in op.events:
            nbytes, _, i = event
            if i >= 0 and i not in gone:
                if peak:
                    yield Event(peak, 0, number)
                    yield Event(-peak, 0, number)
                    number -= 1
                yield event
                peak = height
            elif nbytes > 0:
                height += rounded(nbytes)
                peak = max(peak, height)
            else:
                height -= rounded(-nbytes)
    if peak:
        yield Event(peak, 0, number)
        yield Event(-peak, 0, number)
