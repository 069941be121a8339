"""Which ranks of a plan need memory of their own, so that one of each is run; and what is predicted for it.

    pp 4 x dp 2     ranks 0, 1 | 2, 3 | 4, 5 | 6, 7       run: 0, 4, 6: the first stage, a middle one, the last
    FSDP2 over 8    parts of one size: all do the same    run: 0

>>> from dnnmem.estimator.plan import Mesh, Plan, Sharding
>>> samples_of(Plan(mesh=Mesh(pp=4, dp_replicate=2), sharding=Sharding(strategy="ddp")), ()).ranks
(0, 4, 6)
>>> samples_of(Plan(mesh=Mesh(dp_shard=8), sharding=Sharding(strategy="zero3")), [(16, 4)]).ranks
(0,)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.context_ring import ROUNDS
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.replay import replay_on
from dnnmem.estimator.stage_memory import stage_peak
from dnnmem.estimator.trace import Kind


class Samples(NamedTuple):
    """Ranks that stand for all."""

    ranks: tuple[int, ...]
    """From 0."""
    why: str
    """What the others are like; empty for one rank alone."""


def samples_of(plan: Plan, shapes: Iterable[Sequence[int]]) -> Samples:
    """The first rank, a middle one and the last where they differ; `shapes` are those of the parameters."""
    world, stages, merged = plan.mesh.world_size, plan.mesh.pp, from_context(plan)
    thirds = tuple(sorted({0, world // 2, world - 1}))
    if world == 1:
        return Samples((0,), "")
    if stages > 1:
        each = world // stages
        ranks = tuple(sorted({0, stages // 2 * each, (stages - 1) * each}))
        alike = f"of the {each} ranks of a stage the first ran" if each > 1 else "a rank is a stage"
        return Samples(ranks, alike)
    if merged.sharding.strategy == "zero1" and not merged.sharding.even_parts and merged.mesh.dp_shard > 1:
        return Samples(thirds, "each parameter's states are one rank's")
    rings = ring_ranks(plan)
    parts = merged.mesh.dp_shard if plan.splits_parameters else 1
    even = parts == 1 or not any(shape and shape[0] % (parts * plan.mesh.tp) for shape in shapes)
    if len(rings) > 1:
        last = () if even else (world - 1,)
        why = "ranks of a ring have halves of queries, of keys or of both in a round, and others do as these"
        return Samples(tuple(sorted({*rings, *last})), why)
    if not even:
        return Samples(thirds, f"not all parameters have rows for {parts} equal parts: the first rank has most")
    return Samples((0,), f"all {world} ranks do the same, so that one ran")


def ring_ranks(plan: Plan) -> tuple[int, ...]:
    """Ranks of the first ring that do not all do the same: (0,) without one. The others do as one of these.

    The first has halves of queries in all rounds, the last those of keys. Between them, rank r has keys' until round
    r, and rounds are alike from the third on (`context_ring`).

    >>> from dnnmem.estimator.plan import Mesh, Plan
    >>> ring_ranks(Plan(mesh=Mesh(cp=8, tp=2)))
    (0, 2, 4, 14)
    """
    cp, tp = plan.mesh.cp, plan.mesh.tp
    if cp == 1 or plan.context.method == "ulysses":
        return (0,)
    return (*(r * tp for r in range(min(cp, ROUNDS) - 1)), (cp - 1) * tp)


def shapes_of(recorded: Recorded) -> frozenset[tuple[int, ...]]:
    """Those of the parameters of a step."""
    trace = next(iter(recorded.traces.values()))
    return frozenset(s.shape for s in trace.storages.values() if s.kind is Kind.PARAM)


def predicted_bytes(recorded: Recorded, plan: Plan, cluster: Cluster, ranks: Sequence[int]) -> Mapping[int, int]:
    """What the allocators of ranks reserve at their peaks, where those of `samples_of` are several; else nothing.

    Raises what passes raise.
    """
    if len(ranks) < 2:
        return {}
    trace = recorded.trace(plan.batch.micro_batch or recorded.own_batch, plan.precision.compute)
    if plan.mesh.pp == 1:
        steps = {rank: rewrite(trace, plan, cluster, recorded.layers, rank)[0] for rank in ranks}
        return {rank: replay_on(step, cluster.device).peak_reserved_bytes for rank, step in steps.items()}
    chunks = rewrite(trace, plan, cluster, recorded.layers)
    each = plan.mesh.world_size // plan.mesh.pp
    return {rank: stage_peak(chunks, plan, cluster.device, rank // each).peak_reserved_bytes for rank in ranks}
