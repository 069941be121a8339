"""What a plan costs on unlike GPUs: stages or replicas are of several kinds, and each does what it is able to.

    pp    stages lie on the kinds in order; blocks are dealt so that none waits and each fits (planners.stages, exact)
    dp    replicas take micro-batches as fast as they are: a100 x4: 3 each, h100 x4: 5 each; the slowest kind counts

Kinds are priced as clusters of their own GPUs, with the network between them. Where a plan names its cuts they stay;
schedules of several chunks a rank deal blocks evenly. `batch.accumulation` is the mean over all replicas. Where
parameters are gathered (zero2, zero3) each micro-batch is a meeting of all ranks: they take equally many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.errors import InfeasibleError, UsageError
from dnnmem.estimator.estimate import Estimate, fits_on, price
from dnnmem.estimator.local_step import LocalStep, local_step
from dnnmem.estimator.mixed_cluster import SIGN, kind_of_ranks, whole
from dnnmem.estimator.plan import Plan, check
from dnnmem.estimator.planners.stage_units import balanced
from dnnmem.estimator.replay import ReplayResult, replay_on
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.stage_memory import microbatches, stage_step
from dnnmem.estimator.step_time import time_chunks
from dnnmem.estimator.time_model import TimeModel, load
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """A price, and the step of the kind of GPU that it is told of."""

    found: Estimate
    """Bytes are those of the rank that has least room left."""
    step: LocalStep
    """As that kind does it."""
    model: TimeModel
    """Its rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    part: Cluster
    cluster: Cluster
    """All GPUs, as if they were of this kind."""
    model: TimeModel


def estimate_mixed(trace: Trace, plan: Plan, parts: Sequence[Cluster]) -> Mixed:
    """The price of `trace`'s step run by `plan` on the kinds of GPUs `parts`.

    Raises `UsageError` for ranks that do not fill the kinds, `InfeasibleError` where no cuts fit, and what `estimate`
    raises.
    """
    check(plan)
    kinds = [_Kind(part=part, cluster=whole(part, parts), model=load(part.device)) for part in parts]
    return _staged(trace, plan, kinds) if plan.mesh.pp > 1 else _shared(trace, plan, kinds)


def _staged(trace: Trace, plan: Plan, kinds: Sequence[_Kind]) -> Mixed:
    """A pipeline: each stage on its kind."""
    pp, parts = plan.mesh.pp, [kind.part for kind in kinds]
    of_rank = [kinds[k] for k in kind_of_ranks(parts, pp, plan.mesh.world_size // pp)]
    grid = SCHEDULES[plan.pipeline.schedule](pp, plan.batch.accumulation, plan.pipeline.chunks)
    if not plan.pipeline.cuts and all(len(row) == 1 for row in grid.stages):
        plan = _cut(trace, plan, of_rank)
    step = local_step(trace, plan, kinds[0].cluster)
    of_chunk = {s: of_rank[r] for r, row in enumerate(grid.stages) for s in row}
    places = [(of_chunk[s].cluster, of_chunk[s].model) for s in range(len(step.chunks))]
    found = price(step, kinds[0].model, memory=False, places=places)
    chunks = [chunk.trace for chunk in step.chunks]
    few = SCHEDULES[plan.pipeline.schedule](pp, microbatches(plan), plan.pipeline.chunks)
    held = [replay_on(stage_step(chunks, few, r, plan.batch.accumulation), of_rank[r].part.device) for r in range(pp)]
    worst = min(range(pp), key=lambda r: _left(held[r], of_rank[r].part))
    where = plan.pipeline.cuts or "dealt evenly"
    notes = [f"Stages of unlike GPUs: blocks are cut at {where}.", *_stage_notes(held, of_rank)]
    notes.append(f"Memory is that of pipeline stage {worst} on {of_rank[worst].part.device.name}: it has least room.")
    model = of_rank[worst].model
    found = _told(found, kinds, of_rank[worst], held[worst], notes)
    all_fit = [fits_on(one, kind.part) for one, kind in zip(held, of_rank, strict=True)]
    return Mixed(found=replace(found, fits=_all(all_fit)), step=step, model=model)


def _cut(trace: Trace, plan: Plan, of_rank: Sequence[_Kind]) -> Plan:
    """`plan` with the exact cuts for these ranks: as fast as their GPUs are at this model, and with their room."""
    alone = replace(plan, mesh=replace(plan.mesh, pp=1))
    seconds = {}
    for kind in of_rank:
        if kind.part.name not in seconds:
            step = local_step(trace, alone, kind.cluster)
            seconds[kind.part.name] = sum(sum(passes[:2]) for passes in time_chunks(step, kind.model))
    speeds = [seconds[of_rank[0].part.name] / seconds[kind.part.name] for kind in of_rank]
    rooms = [kind.part.device.usable_bytes - (kind.part.device.context_bytes or 0) for kind in of_rank]
    try:
        return balanced(trace, plan, of_rank[0].cluster, rooms=rooms, speeds=speeds)
    except InfeasibleError:  # the balance alone: the estimate tells which stage does not fit
        return balanced(trace, plan, of_rank[0].cluster, speeds=speeds)


def _shared(trace: Trace, plan: Plan, kinds: Sequence[_Kind]) -> Mixed:
    """Data parallelism: each kind takes its share of the micro-batches."""
    mesh = plan.mesh
    if mesh.data_ranks == 1:
        raise UsageError(
            f"the plan has {mesh.world_size} ranks of one model, which on unlike GPUs would wait for the slowest",
            hint="--set mesh.pp=... gives each kind stages, --set mesh.dp_replicate=... replicas",
        )
    of_rank = kind_of_ranks([kind.part for kind in kinds], mesh.data_ranks, mesh.world_size // mesh.data_ranks)
    counts = [of_rank.count(k) for k in range(len(kinds))]
    one = [price(local_step(trace, _with(plan, 1), kind.cluster), kind.model, memory=False) for kind in kinds]
    two = [price(local_step(trace, _with(plan, 2), kind.cluster), kind.model, memory=False) for kind in kinds]
    paces = [(a.step_seconds, max(b.step_seconds - a.step_seconds, 0.0)) for a, b in zip(one, two, strict=True)]
    total, equal = mesh.data_ranks * plan.batch.accumulation, (plan.batch.accumulation,) * len(kinds)
    shares = equal if plan.splits_parameters else balanced_shares(counts, paces, total)
    steps = [local_step(trace, _with(plan, m), kind.cluster) for m, kind in zip(shares, kinds, strict=True)]
    each = [price(step, kind.model) for step, kind in zip(steps, kinds, strict=True)]
    held = [replay_on(step.local, kind.part.device) for step, kind in zip(steps, kinds, strict=True)]
    worst = min(range(len(kinds)), key=lambda k: _left(held[k], kinds[k].part))
    slowest = max(range(len(kinds)), key=lambda k: each[k].step_seconds)
    notes = list(_share_notes(kinds, shares, each, held))
    notes.append(f"Memory is that of ranks on {kinds[worst].part.device.name}: they have least room left.")
    if len(set(shares)) > 1:
        notes.append("Unequal shares: a rank's loss counts micro-batches of its own over the mean of all.")
    if plan.splits_parameters and len({kind.part.device.name for kind in kinds}) > 1:
        notes.append(
            "All ranks take as many micro-batches, since parameters are gathered in each: quicker GPUs wait. "
            "sharding.strategy=ddp or zero1 shares them unequally."
        )
    ratio = total / (shares[slowest] * mesh.data_ranks)
    found = _scaled(each[slowest], ratio)
    found = _told(replace(found, plan=plan), kinds, kinds[worst], held[worst], notes)
    fits = _all([one.fits for one in each])
    return Mixed(found=replace(found, fits=fits), step=steps[slowest], model=kinds[slowest].model)


def balanced_shares(counts: Sequence[int], paces: Sequence[tuple[float, float]], total: int) -> tuple[int, ...]:
    """Micro-batches of each rank by kind, `total` over all ranks, so that the slowest kind is done soonest.

    `counts`: ranks of each kind; `paces`: seconds of a step of one micro-batch, and of each further one. Of equally
    quick shares the most equal. Raises `UsageError` where no whole numbers sum up to `total`.

    >>> balanced_shares((4, 4), ((1.0, 1.0), (0.5, 0.5)), 24)
    (2, 4)
    """
    best: tuple[tuple[float, int], tuple[int, ...]] | None = None
    for shares in _shares(counts, total):
        seconds = max(first + (m - 1) * more for m, (first, more) in zip(shares, paces, strict=True))
        key = seconds, max(shares) - min(shares)
        if best is None or key < best[0]:
            best = key, shares
    if best is None:
        raise UsageError(
            f"{total} micro-batches cannot be shared by {' + '.join(map(str, counts))} ranks, each with one or more",
            hint="raise batch.accumulation",
        )
    return best[1]


def _shares(counts: Sequence[int], total: int) -> Iterator[tuple[int, ...]]:
    if len(counts) == 1:
        if total >= counts[0] and total % counts[0] == 0:
            yield (total // counts[0],)
        return
    for m in range(1, total // counts[0] + 1):
        yield from ((m, *rest) for rest in _shares(counts[1:], total - m * counts[0]))


def _with(plan: Plan, accumulation: int) -> Plan:
    return replace(plan, batch=replace(plan.batch, accumulation=accumulation))


def _left(held: ReplayResult, part: Cluster) -> int:
    return part.device.usable_bytes - (part.device.context_bytes or 0) - held.peak_reserved_bytes


def _all(fits: Sequence[bool | None]) -> bool | None:
    return False if False in fits else None if None in fits else True


def _told(found: Estimate, kinds: Sequence[_Kind], worst: _Kind, held: ReplayResult, notes: Sequence[str]) -> Estimate:
    """`found` of the whole: bytes of the worst rank, prices and powers of all GPUs."""
    prices = [kind.part.price_usd_per_h for kind in kinds]
    hours = found.step_seconds / 3600
    usd = None
    if all(prices):
        usd = tuple(sum(p[n] * k.part.gpus for p, k in zip(prices, kinds, strict=True) if p) * hours for n in (0, 1))
    name = SIGN.join(kind.part.name for kind in kinds)
    return replace(
        found,
        cluster=replace(worst.cluster, name=name),
        peak_allocated_bytes=held.peak_allocated_bytes,
        peak_reserved_bytes=held.peak_reserved_bytes,
        context_bytes=worst.part.device.context_bytes,
        mfu=None,
        usd_per_step=None if usd is None else (usd[0], usd[1]),
        joules_bound=sum(k.part.device.power_watts * k.part.gpus for k in kinds) * found.step_seconds,
        notes=(*found.notes, *notes),
    )


def _scaled(found: Estimate, ratio: float) -> Estimate:
    """What is counted of a step, where the mean share is `ratio` of this kind's."""
    tokens = None if found.tokens is None else round(found.tokens * ratio)
    flops, samples = round(found.model_flops * ratio), round(found.samples * ratio)
    return replace(found, samples=samples, tokens=tokens, model_flops=flops)


def _stage_notes(held: Sequence[ReplayResult], of_rank: Sequence[_Kind]) -> Iterator[str]:
    for r, (one, kind) in enumerate(zip(held, of_rank, strict=True)):
        room = format_bytes(kind.part.device.usable_bytes)
        yield f"Stage {r} on {kind.part.device.name}: {format_bytes(one.peak_reserved_bytes)} reserved of {room}."


def _share_notes(
    kinds: Sequence[_Kind], shares: Sequence[int], each: Sequence[Estimate], held: Sequence[ReplayResult]
) -> Iterator[str]:
    for kind, m, found, one in zip(kinds, shares, each, held, strict=True):
        yield (
            f"{kind.part.gpus} x {kind.part.device.name}: {m} micro-batches a rank, "
            f"{format_seconds(found.step_seconds)}, {format_bytes(one.peak_reserved_bytes)} reserved of "
            f"{format_bytes(kind.part.device.usable_bytes)}."
        )
