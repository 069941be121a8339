"""What tensor and pipeline parallelism cost at least, from one simulated micro-batch, for every number of stages.

forward   | embed | block 0 | block 1 | ...       chunk of blocks i..j:  what the pass takes to j, less that to i
backward  | head' | block L' | ...                (work behind a prefix never takes longer than by itself)

rank r of a schedule that flushes:   fill before it + its own work on all micro-batches + what drains behind it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from dnnmem.estimator.block_list import BlockList, blocks_of_ops, main_list
from dnnmem.estimator.coarsen import rounded
from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.local_step import step_of
from dnnmem.estimator.passes import chunks_of, rewrite_chunks
from dnnmem.estimator.passes.pipeline_cuts import chunk_of_blocks
from dnnmem.estimator.pipeline_timing import in_flight
from dnnmem.estimator.plan import Gradients, Mesh, Pipeline, Plan, Sharding
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.schedules.grid import Stages
from dnnmem.estimator.search_core import STATES, Core, Cost, Rates, Spread, few_in_runs, with_costs
from dnnmem.estimator.search_drawn import DRAWN
from dnnmem.estimator.stage_memory import least_peak, microbatches
from dnnmem.estimator.step_time import time_chunks, time_ops, time_step
from dnnmem.estimator.trace import Kind, Phase, Trace

_ALIKE = 0.98
"""What blocks keep differs by less: the last one has another neighbour."""


def spread_of(core: Core, plan: Plan, rates: Rates) -> Spread:
    """That of `core`, which is that of `plan`; made once.

    Raises `UnsupportedError` for a model without equal blocks.
    """
    if core.spread is None:
        core.spread = _spread(core, plan, rates)
    return core.spread


def _spread(core: Core, plan: Plan, rates: Rates) -> Spread:
    """Drawn out from as many blocks as the record has, and one more, to all of them."""
    found = main_list(core.few_runs)
    if found is None:
        raise UnsupportedError("the model has no list of equal blocks: stages are runs of them", hint="--set mesh.pp=1")
    if core.layers is None:
        forward, backward = _marks(core.few_runs, plan, rates)
        return Spread(
            forward=tuple(forward), backward=tuple(backward), inside=_inside(core.few_runs, found, found.count)
        )
    (some, few), (_, more) = few_in_runs(core)
    mine, (forward, backward) = _marks(few, plan, rates), _marks(more, plan, rates)
    f, b = (forward[-1] - mine[0][-1]) * DRAWN, (backward[0] - mine[1][0]) * DRAWN
    left = core.layers - some
    return Spread(
        forward=(*forward[:-1], *(forward[-2] + n * f for n in range(1, left)), forward[-1] + (left - 1) * f),
        backward=(backward[0] + (left - 1) * b, *(backward[1] + n * b for n in range(left - 1, 0, -1)), *backward[1:]),
        inside=_inside(more, found, core.layers),
    )


def _marks(runs: Trace, plan: Plan, rates: Rates) -> tuple[list[float], list[float]]:
    """`Spread.forward` and `Spread.backward` of as many blocks as `runs` have."""
    blocks = main_list(runs)
    count = blocks.count if blocks else 0
    alone = Plan(mesh=Mesh(tp=plan.mesh.tp, cp=plan.mesh.cp), tensor=plan.tensor, context=plan.context)
    step = step_of([runs], runs, alone, rates.cluster, 0)
    ops, timing = time_ops(with_costs(step, rates.runs, rates.model), rates.model)
    owners = blocks_of_ops(ops, blocks) if blocks else [None] * len(ops)
    forward, backward = [0.0] * (count + 1), [0.0] * (count + 1)
    middle = end = 0.0
    for op, owner, ended in zip(ops, owners, timing.end.tolist(), strict=True):
        if op.phase is Phase.STEP:
            break
        end = max(end, ended)
        if op.phase is Phase.FORWARD:
            middle = end
            if owner is not None:
                forward[owner + 1] = end
        elif owner is not None:
            backward[owner] = end - middle
    forward[count], backward[0] = middle, end - middle
    return forward, backward


def _inside(runs: Trace, blocks: BlockList, count: int) -> dict[Kind, int]:
    """Bytes of states of `count` blocks, each taken to have no more than the one that has least."""
    inside: dict[Kind, Counter[int]] = {kind: Counter() for kind in STATES}
    for i in runs.pinned:
        s = runs.storages[i]
        block = blocks.index(s.module)
        if s.kind in inside and block is not None:
            inside[s.kind][block] += rounded(s.nbytes)
    return {kind: min(each.values(), default=0) * count for kind, each in inside.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What of a schedule counts here."""

    stages: Stages
    """Chunks of each rank."""
    replicas: int
    """How often each stage is there."""
    flushes: bool
    """Whether a step waits for its last micro-batch."""
    splits: bool
    """Whether gradients of weights come later than those of inputs."""


@lru_cache(maxsize=256)
def _layout(schedule: str, ranks: int, chunks: int) -> _Layout:
    grid = SCHEDULES[schedule](ranks, 2 * ranks, chunks)
    splits = any(step.phase == "W" for step in grid.ranks[0])
    return _Layout(stages=grid.stages, replicas=grid.replicas, flushes=grid.flushes, splits=splits)


@lru_cache(maxsize=512)
def _in_flight(schedule: str, ranks: int, microbatches: int, chunks: int) -> tuple[int, ...]:
    """Chunks' forwards that each rank holds at once, until the gradients of their inputs are made."""
    rows = SCHEDULES[schedule](ranks, microbatches, chunks).ranks
    return tuple(
        in_flight(tuple(s._replace(phase="W") if s.phase == "I" else s for s in r if s.phase != "W")) for r in rows
    )


def least_seconds(spread: Spread, plan: Plan) -> float:
    """Of a step's forward and backward passes, whatever data parallelism adds."""
    if plan.mesh.pp == 1:
        return spread.seconds * plan.batch.accumulation
    firsts = [*_firsts(plan, len(spread.forward) - 1), len(spread.forward) - 1]
    around = list(pairwise(firsts))
    forward = [spread.forward[j] - spread.forward[i] for i, j in around]
    backward = [spread.backward[i] - spread.backward[j] for i, j in around]
    return _pipelined(plan, forward, backward)


def _pipelined(plan: Plan, forward: Sequence[float], backward: Sequence[float]) -> float:
    """Of the rank that its place keeps longest, given its chunks' seconds."""
    layout = _layout(plan.pipeline.schedule, plan.mesh.pp, plan.pipeline.chunks)
    fills = layout.flushes and layout.replicas == 1
    found = 0.0
    for row in layout.stages:
        own = sum(forward[s] + backward[s] for s in row) * plan.batch.accumulation / layout.replicas
        if fills:
            own += sum(forward[: row[0]]) + (0.0 if layout.splits else sum(backward[: row[0]]))
        found = max(found, own)
    return found


@lru_cache(maxsize=512)
def _first_blocks(pipeline: Pipeline, chunks: int, blocks: int) -> tuple[int, ...]:
    of_block = chunk_of_blocks(Plan(pipeline=pipeline), chunks, blocks)
    return tuple(of_block.index(c) for c in range(chunks))


def _firsts(plan: Plan, blocks: int) -> tuple[int, ...]:
    """First block of each chunk. Raises `UnsupportedError` for more chunks than blocks."""
    chunks = plan.mesh.pp * plan.pipeline.chunks
    if chunks > blocks:
        raise UnsupportedError(f"{chunks} chunks, but the model has {blocks} equal blocks; each chunk needs one")
    return _first_blocks(plan.pipeline, chunks, blocks)


def least_bytes(spread: Spread, saved_bytes: int, plan: Plan, parts: Mapping[Kind, int]) -> int:
    """What some rank of a pipeline holds: the states of its blocks, in `parts`, and what micro-batches keep.

    `saved_bytes`: what a block keeps of each, at least.
    """
    blocks = len(spread.forward) - 1
    firsts = [*_firsts(plan, blocks), blocks]
    sizes = [j - i for i, j in pairwise(firsts)]
    pipeline, ranks = plan.pipeline, plan.mesh.pp
    each = sum(nbytes / parts[kind] for kind, nbytes in spread.inside.items()) / blocks
    held = _in_flight(pipeline.schedule, ranks, microbatches(plan), pipeline.chunks)
    stages = _layout(pipeline.schedule, ranks, pipeline.chunks).stages
    return int(
        max(
            each * sum(sizes[s] for s in row) + saved_bytes * _ALIKE * count * min(sizes[s] for s in row)
            for row, count in zip(stages, held, strict=True)
        )
    )


def chunks_in(core: Core, plan: Plan) -> list[Trace]:
    """The chunks of a pipeline, op by op. Raises `UnsupportedError` for fewer blocks than chunks."""
    key = (plan.mesh.pp, plan.pipeline)
    if key not in core.chunks:
        core.chunks[key] = chunks_of(core.trace, plan, core.layers)
    return core.chunks[key]


def chunks_in_runs(core: Core, plan: Plan) -> list[Trace]:
    """The same in runs, which end where blocks do."""
    key = (plan.mesh.pp, plan.pipeline)
    if key not in core.coarse:
        core.coarse[key] = chunks_of(core.few_runs, plan, core.layers)
    return core.coarse[key]


def least_states(spread: Spread, plan: Plan, parts: Mapping[Kind, int]) -> int:
    """Bytes of states of blocks on the rank that has fewest of them."""
    blocks = len(spread.forward) - 1
    sizes = [j - i for i, j in pairwise([*_firsts(plan, blocks), blocks])]
    stages = _layout(plan.pipeline.schedule, plan.mesh.pp, plan.pipeline.chunks).stages
    each = sum(nbytes / parts[kind] for kind, nbytes in spread.inside.items()) / blocks
    return int(each * min(sum(sizes[s] for s in row) for row in stages))


@collector_paused()
def others_bytes(chunks: Sequence[Trace], core: Core, plan: Plan, rates: Rates) -> int:
    """What the rank that holds most holds besides states, whatever data parallelism adds."""
    key = (plan.mesh.pp, plan.pipeline, plan.batch.accumulation)
    if key not in core.others:
        bare = replace(
            plan, mesh=replace(plan.mesh, dp_shard=1, dp_replicate=1, cp=1), sharding=Sharding(), gradients=Gradients()
        )
        passes = _without_updates(rewrite_chunks(chunks, bare, rates.cluster))
        core.others[key] = least_peak(passes, plan, frozenset(Kind) - STATES)
    return core.others[key]


def _without_updates(chunks: Sequence[Trace]) -> list[Trace]:
    """What an update makes is split with it; chunks that are one trace stay one."""
    done = {
        key: replace(chunk, ops=tuple(op for op in chunk.ops if op.phase is not Phase.STEP))
        for key, chunk in {id(chunk): chunk for chunk in chunks}.items()
    }
    return [done[id(chunk)] for chunk in chunks]


@collector_paused()
def stages_by_runs(chunks: Sequence[Trace], core: Core, plan: Plan, rates: Rates) -> Cost:
    """Seconds and bytes of a pipeline's step, its `chunks` in runs."""
    parts, model = rewrite_chunks(chunks, plan, rates.cluster), rates.model
    step = with_costs(step_of(parts, core.few_runs, plan, rates.cluster, 0), rates.runs, model)
    held = least_peak(parts, plan)
    if not _layout(plan.pipeline.schedule, plan.mesh.pp, plan.pipeline.chunks).splits:
        return Cost(seconds=time_step(step, model).seconds, peak_bytes=held)
    forward, backward, after = zip(*time_chunks(step, model), strict=True)  # a run makes both kinds of gradients
    return Cost(seconds=_pipelined(plan, forward, backward) + max(after) + model.iteration_seconds, peak_bytes=held)
