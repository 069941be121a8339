"""What stage balance is asked: the blocks of a recorded step as units, the ranks of a plan as slots; and its answer.

trace --passes of the model--> one chunk a block --price--> units      plan --schedule--> slots      --> Pipeline.cuts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dnnmem.estimator.block_list import main_list
from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import rewrite_model
from dnnmem.estimator.passes.pipeline import split
from dnnmem.estimator.pipeline_timing import in_flight
from dnnmem.estimator.plan import Mesh, Pipeline, Plan
from dnnmem.estimator.planners.stages import Slot, Unit, best_cuts
from dnnmem.estimator.roofline import op_seconds
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Kind, Phase, Trace
from dnnmem.estimator.work import work_of

Price = Callable[[Trace], float]
"""Seconds of the forward and backward pass of a chunk."""


def balanced(
    trace: Trace, plan: Plan, cluster: Cluster, *, rooms: Sequence[int | None] = (), speeds: Sequence[float] = ()
) -> Plan:
    """`plan` with the cuts that take least time, where ranks have `rooms` bytes and `speeds` times the GPU.

    Raises `InfeasibleError` where none fits, `UnsupportedError` for several chunks a rank and for a model of no blocks.
    """
    model = load(cluster.device)

    def price(chunk: Trace) -> float:
        seconds = np.nan_to_num(op_seconds(work_of(chunk), cluster.device, model), nan=0.0)
        return float(sum(s for s, op in zip(seconds, chunk.ops, strict=True) if op.phase is not Phase.STEP))

    units = chain_units(rewrite_model(trace, plan, cluster), price)
    slots = slots_of(plan, rooms or (None,) * plan.mesh.pp, speeds)
    flushes = SCHEDULES[plan.pipeline.schedule](plan.mesh.pp, plan.batch.accumulation, 1).flushes
    found = best_cuts(units, slots, plan.batch.accumulation, flushes=flushes)
    return replace(plan, pipeline=replace(plan.pipeline, cuts=found.text))


def chain_units(trace: Trace, price: Price) -> list[Unit]:
    """A unit for each block; the first has what comes before it, the last what comes after.

    Raises `UnsupportedError` for a model without equal blocks.
    """
    blocks = main_list(trace)
    if blocks is None:
        raise UnsupportedError("the model has no list of equal blocks: stages are runs of them", hint="--set mesh.pp=1")
    alone = Plan(mesh=Mesh(pp=blocks.count), pipeline=Pipeline(buffers=False))
    return [_unit(chunk, price) for chunk in split(trace, alone)]


def _unit(chunk: Trace, price: Price) -> Unit:
    storages = chunk.storages.values()
    weights = sum(s.nbytes for s in storages if s.kind is Kind.PARAM and s.id in chunk.pinned)
    grads = sum(s.nbytes for s in storages if s.kind is Kind.GRAD and s.id not in chunk.pinned)
    kept = sum(e.nbytes for op in chunk.ops if op.phase is Phase.FORWARD for e in op.events)
    resting = chunk.pinned_bytes()
    return Unit(
        seconds=price(chunk), resting_bytes=resting + grads, weight_bytes=weights, held_bytes=max(kept, 0),
        working_bytes=chunk.peak_bytes() - resting - max(kept, 0),
    )  # fmt: skip


def slots_of(plan: Plan, rooms: Sequence[int | None], speeds: Sequence[float] = ()) -> list[Slot]:
    """A slot for each rank, by its place in the schedule. Raises `UnsupportedError` for several chunks a rank."""
    p, m = plan.mesh.pp, plan.batch.accumulation
    grid = SCHEDULES[plan.pipeline.schedule](p, m, plan.pipeline.chunks)
    if any(len(row) > 1 for row in grid.stages):
        raise UnsupportedError(
            f"{plan.pipeline.schedule} has several chunks a rank, whose cuts are not planned", hint="leave them even"
        )
    return [
        Slot(
            speed=speeds[r] if speeds else 1.0, room_bytes=rooms[r], in_flight=in_flight(grid.ranks[r]),
            versions=1 + grid.extra_copies(r),
        )
        for r in range(p)
    ]  # fmt: skip
