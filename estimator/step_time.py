"""How long a planned step takes: its ops priced, run on lanes, and its chunks passed through the pipeline's schedule.

one rank     T(forward, backward, sync, step) + (accumulation - 1) T(forward, backward)
a pipeline   the schedule's last end over the chunks' forward and backward times, then sync and step of the slowest rank
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.collectives import Group, collective_seconds, group_of
from dnnmem.estimator.host_link import copy_bytes_per_s
from dnnmem.estimator.local_step import Chunk, LocalStep
from dnnmem.estimator.op_class import OpClass
from dnnmem.estimator.passes.backward_parts import weight_ops
from dnnmem.estimator.passes.offload_copies import FROM_FILE, TO_FILE
from dnnmem.estimator.passes.offload_optimizer import (
    DISK_BYTES_PER_S,
    HOST_BYTES_PER_S,
    HOST_UPDATE,
    READ_STATES,
    WRITE_STATES,
)
from dnnmem.estimator.pipeline_timing import pipeline_seconds
from dnnmem.estimator.roofline import by_class, host_seconds, op_seconds, peak_rates
from dnnmem.estimator.schedules import SCHEDULES, UPDATES_EACH
from dnnmem.estimator.schedules.grid import Costs, Grid
from dnnmem.estimator.simulate import Timing, simulate
from dnnmem.estimator.time_model import TimeModel
from dnnmem.estimator.trace import Kind, Lane, Op, Phase
from dnnmem.estimator.traced_layer import traced_seconds, with_sends

Index = npt.NDArray[np.intp]
_IN_PARTS = ("all_gather", "reduce_scatter")
"""Messages along the sequence: where it is no first dimension, torch copies the parts together, or apart."""
_SHARED = {
    HOST_UPDATE: HOST_BYTES_PER_S,
    **dict.fromkeys((READ_STATES, WRITE_STATES, TO_FILE, FROM_FILE), DISK_BYTES_PER_S),
}
"""What the GPUs of a node share, by the ops that use it."""
SHARES = ("compute", "memory", "communication", "bubble", "host")
"""What bounds a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step and what they are made of."""

    seconds: float
    """One optimizer step."""
    breakdown: Mapping[str, float]
    """By `SHARES`."""
    classes: Mapping[str, float]
    """Busy seconds of the slowest rank by class, `communication` among them."""
    lanes: Mapping[str, float]
    """Busy seconds of the slowest rank by lane, `host` among them; lanes overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Busy seconds of a module's own ops on the ranks that hold it, for one micro-batch; communication included."""

    module: tuple[str, ...]
    """Path; `("<optimizer>",)` for the update."""
    forward_seconds: float
    """In forward."""
    backward_seconds: float
    """In backward, recomputation included."""
    step_seconds: float
    """In the optimizer's step."""


def time_step(step: LocalStep, model: TimeModel, places: Sequence[tuple[Cluster, TimeModel]] = ()) -> StepTime:
    """Time a prepared step by the rates of `model`; `places`: of each chunk, where GPUs are unlike."""
    if places:
        keys = [(id(chunk), id(place[1])) for chunk, place in zip(step.chunks, places, strict=True)]
        each = zip(keys, step.chunks, places, strict=True)
        parts = {key: _priced(chunk, replace(step, cluster=where), rates) for key, chunk, (where, rates) in each}
        priced = [parts[key] for key in keys]
    else:
        done = _all_priced(step, model)
        priced = [done[id(chunk)] for chunk in step.chunks]
    timed = _pipelined(step, priced, model) if step.plan.mesh.pp > 1 else _alone(step, priced[0])
    shares = dict(timed.breakdown)
    shares["host"] += model.iteration_seconds
    return replace(timed, seconds=timed.seconds + model.iteration_seconds, breakdown=shares)


def time_layers(step: LocalStep, model: TimeModel) -> tuple[LayerTime, ...]:
    """Where the ops' seconds go, by module in the order they first run."""
    spent: dict[tuple[str, ...], dict[Phase, float]] = {}
    for chunk in step.chunks:
        seconds = _priced(chunk, step, model).seconds.tolist()
        for op, value in zip(chunk.trace.ops, seconds, strict=True):
            row = spent.setdefault(op.module, dict.fromkeys(Phase, 0.0))
            row[op.phase] += value
    return tuple(
        LayerTime(
            module=module,
            forward_seconds=row[Phase.FORWARD],
            backward_seconds=row[Phase.BACKWARD],
            step_seconds=row[Phase.STEP],
        )
        for module, row in spent.items()
    )


def time_ops(step: LocalStep, model: TimeModel) -> tuple[tuple[Op, ...], Timing]:
    """The ops of a micro-batch and of the update, and when each runs; of the first pipeline stage, never stopped."""
    priced = _priced(step.chunks[0], step, model)
    chunk = priced.chunk
    index = np.sort(np.concatenate((chunk.forward, chunk.backward, chunk.sync, chunk.step)))
    ops = tuple(chunk.trace.ops[i] for i in index)
    return ops, simulate(ops, priced.seconds[index], priced.host[index], model.contention)


def time_chunks(step: LocalStep, model: TimeModel) -> list[tuple[float, float, float]]:
    """Seconds of each chunk alone: forward and backward of a micro-batch, and what follows once a step."""
    done = {
        key: (priced.run(priced.chunk.forward).seconds, priced.run(priced.chunk.backward).seconds, _after(priced))
        for key, priced in _all_priced(step, model).items()
    }
    return [done[id(chunk)] for chunk in step.chunks]


def _after(priced: _Priced) -> float:
    return priced.run(priced.chunk.sync).seconds + priced.run(priced.chunk.step).seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Some ops of a chunk, run on lanes."""

    seconds: float
    shares: Mapping[str, float]
    classes: Mapping[str, float]
    lanes: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Priced:
    """A chunk with the seconds of its ops."""

    chunk: Chunk
    seconds: npt.NDArray[np.float64]
    host: npt.NDArray[np.float64]
    arithmetic: npt.NDArray[np.bool_]
    """Ops that the arithmetic units bound."""
    contention: float
    """`TimeModel.contention`."""
    spans: npt.NDArray[np.float64] | None = None
    """Where a table adds up traced parts: what it counts for each op."""

    def run(self, *parts: Index) -> _Run:
        """These ops in program order."""
        index = np.sort(np.concatenate(parts))
        ops = self.chunk.trace.ops
        timing = simulate([ops[i] for i in index], self.seconds[index], self.host[index], self.contention)
        busy = timing.busy[Lane.COMPUTE]
        total, host = timing.seconds, timing.exposed.get("host", 0.0)
        if self.spans is not None:
            sent = sum(self.seconds[m.index] for m in self.chunk.messages if m.index in index)
            total = float(self.spans[index].sum())
            host = max(total - busy - sent, 0.0)
        compute = float(self.seconds[index][self.arithmetic[index]].sum())
        shares = {
            "compute": compute,
            "memory": busy - compute,
            "communication": max(total - busy - host, 0.0),
            "bubble": 0.0,
            "host": host,
        }
        wanted = np.zeros_like(self.seconds)
        wanted[index] = self.seconds[index]
        classes = dict(by_class(self.chunk.work, wanted))
        classes.pop(OpClass.LANE.label, None)
        classes["communication"] = float(sum(wanted[m.index] for m in self.chunk.messages))
        lanes = {**{lane.value: value for lane, value in timing.busy.items()}, "host": timing.host_seconds}
        return _Run(seconds=total, shares=shares, classes=classes, lanes=lanes)


def _all_priced(step: LocalStep, model: TimeModel) -> dict[int, _Priced]:
    """The chunks by their `id`."""
    chunks = {id(chunk): chunk for chunk in step.chunks}
    done = {key: _priced(chunk, step, model) for key, chunk in chunks.items()}
    if not model.traced_layer:
        return done
    spans = traced_seconds(step, {key: p.seconds for key, p in done.items()}, {key: p.host for key, p in done.items()})
    return {key: replace(p, spans=spans[key]) for key, p in done.items()}


def _priced(chunk: Chunk, step: LocalStep, model: TimeModel) -> _Priced:
    device, link = step.cluster.device, step.cluster.host
    copies = copy_bytes_per_s(step.cluster, model)
    seconds = np.nan_to_num(op_seconds(chunk.work, device, model), nan=0.0)
    for m in chunk.messages:
        seconds[m.index] = collective_seconds(m.kind, m.nbytes, m.group, step.cluster, model)
        if m.axis == "tp" and m.kind in _IN_PARTS and not step.plan.tensor.sequence_first:
            seconds[m.index] += _pieces_seconds(m.nbytes, chunk.work.item_bytes[m.index], step, model)
    for i, op in enumerate(chunk.trace.ops):
        if op.lane in (Lane.TO_HOST, Lane.TO_DEVICE):
            seconds[i] = op.moved_bytes / copies + link.latency_seconds
            if op.name in _SHARED:
                seconds[i] = op.moved_bytes * step.cluster.gpus_per_node / _SHARED[op.name]
    work, host = chunk.work, host_seconds(chunk.work, model)
    host[chunk.backward] *= model.host_backward
    arithmetic = work.flops * device.memory_bytes_per_s > work.bytes * peak_rates(work, device)
    return _Priced(chunk=chunk, seconds=seconds, host=host, arithmetic=arithmetic, contention=model.contention)


def _pieces_seconds(nbytes: float, item_bytes: float, step: LocalStep, model: TimeModel) -> float:
    """Seconds of putting parts together, or apart: an eager concatenation divides out each element's place."""
    device = step.cluster.device
    moved = 2 * nbytes / (model.stream * device.memory_bytes_per_s)
    placed = nbytes / item_bytes * model.index_seconds / device.sm_count
    return moved + placed if step.plan.kernels.fusion == "none" else moved


def _alone(step: LocalStep, priced: _Priced) -> StepTime:
    chunk = priced.chunk
    runs = [(priced.run(chunk.forward, chunk.backward, chunk.sync, chunk.step), 1)]
    if step.plan.batch.accumulation > 1:
        runs.append((priced.run(chunk.forward, chunk.backward), step.plan.batch.accumulation - 1))
    return _sum(runs)


def _pipelined(step: LocalStep, priced: list[_Priced], model: TimeModel) -> StepTime:
    schedule, ranks, count = step.plan.pipeline.schedule, step.plan.mesh.pp, step.plan.batch.accumulation
    grid = SCHEDULES[schedule](ranks, count, step.plan.pipeline.chunks)
    held = [[priced[stage] for stage in row] for row in grid.stages]
    each = {id(p): p for p in priced}
    runs = {key: (p.run(p.chunk.forward), p.run(p.chunk.backward)) for key, p in each.items()}
    splits = any(s.phase == "W" for row in grid.ranks for s in row)
    later = {key: _weight_seconds(p) if splits else 0.0 for key, p in each.items()}
    ends = {key: [p.run(p.chunk.sync), p.run(p.chunk.step)] for key, p in each.items()}
    forward: Costs = [[runs[id(p)][0].seconds for p in row] for row in held]
    backward: Costs = [[runs[id(p)][1].seconds for p in row] for row in held]
    sent = _send_seconds(step, model)
    if model.traced_layer:
        forward, backward = with_sends(forward, backward, _longest_send(step))
        sent = 0.0
    timing = pipeline_seconds(grid, forward, backward, sent, [[later[id(p)] for p in row] for row in held])
    updates = count if schedule in UPDATES_EACH else 1
    after = [[run for p in row for run in ends[id(p)]] + _summed(row, grid, step, model) for row in held]
    last = max(after, key=lambda runs: sum(run.seconds for run in runs))
    busiest = max(range(ranks), key=lambda r: timing.busy[r])
    times = Counter(s.chunk for s in grid.ranks[busiest] if s.phase == "F")
    work = [(run, times[c]) for c, p in enumerate(held[busiest]) for run in runs[id(p)]]
    found = _sum([*work, *((run, updates) for run in last)])
    seconds = timing.seconds + updates * sum(run.seconds for run in last)
    shares = {**found.breakdown, "bubble": max(seconds - found.seconds, 0.0)}
    return replace(found, seconds=seconds, breakdown=shares)


def _weight_seconds(priced: _Priced) -> float:
    """Of the backward pass, what makes gradients that no other stage waits for."""
    later = weight_ops(priced.chunk.trace)
    own = np.array([i for i in priced.chunk.backward if i in later], np.intp)
    return min(priced.run(own).seconds, priced.run(priced.chunk.backward).seconds)


def _summed(row: Sequence[_Priced], grid: Grid, step: LocalStep, model: TimeModel) -> list[_Run]:
    """The sum of gradients over two replicas of the stages, where there are two."""
    if grid.replicas == 1:
        return []
    group = group_of(step.plan.mesh, "pp", step.cluster)
    pair = Group(size=2, per_node=2 if group.per_node == group.size else 1)
    grads = [s.nbytes for p in row for s in p.chunk.trace.storages.values() if s.kind is Kind.GRAD]
    seconds = collective_seconds("all_reduce", sum(grads), pair, step.cluster, model)
    spent = {"communication": seconds}
    return [_Run(seconds=seconds, shares=spent, classes=spent, lanes={Lane.COMM.value: seconds})]


def _longest_send(step: LocalStep) -> int:
    """Bytes of the longest message between stages."""
    return max((m.nbytes for chunk in step.chunks for m in chunk.passed), default=0)


def _send_seconds(step: LocalStep, model: TimeModel) -> float:
    """Seconds of the longest message between stages, and of gathering it where tensor-parallel ranks send parts."""
    plan, cluster = step.plan, step.cluster
    sends = [m for chunk in step.chunks for m in chunk.passed]
    if not sends:
        return 0.0
    longest = max(sends, key=lambda m: m.nbytes)
    tp = plan.mesh.tp if plan.pipeline.scatter_gather and not plan.tensor.sequence_parallel else 1
    seconds = collective_seconds("send", longest.nbytes // tp, longest.group, cluster, model)
    if tp > 1:
        seconds += collective_seconds("all_gather", longest.nbytes, group_of(plan.mesh, "tp", cluster), cluster, model)
    return seconds


def _sum(runs: Iterable[tuple[_Run, int]]) -> StepTime:
    """Runs one after the other, each so many times."""
    seconds = 0.0
    totals: tuple[dict[str, float], ...] = tuple(defaultdict(float) for _ in range(3))
    for run, times in runs:
        seconds += run.seconds * times
        for total, part in zip(totals, (run.shares, run.classes, run.lanes), strict=True):
            for name, value in part.items():
                total[name] += value * times
    shares, classes, lanes = (dict(total) for total in totals)
    return StepTime(seconds=seconds, breakdown=shares, classes=classes, lanes=lanes)
