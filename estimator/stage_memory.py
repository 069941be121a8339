"""What a rank of a pipeline holds: its step written out micro-batch by micro-batch in the schedule's order, and played.

    rank 1 of 3 under 1f1b     F0 F1 B0 F2 B1 F3 B2 B3 | step        F2 allocates anew what its backward frees
    its chunk, recorded once   F  B  step

Each micro-batch has storages of its own; parameters, gradients and states are there once. So peaks follow from the
same allocator as those of a plain step, and a rank's activations from its place in the schedule. Micro-batches
beyond those that fill the pipeline find the memory that earlier ones have left, and are not played.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.device import Device
from dnnmem.estimator.pipeline_timing import in_flight
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_pipeline import has_buffers
from dnnmem.estimator.rank_peak import rank_peak
from dnnmem.estimator.rank_step import rank_step
from dnnmem.estimator.replay import ReplayResult, replay_on
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.schedules.grid import Grid, Step
from dnnmem.estimator.send_waits import microbatches_behind
from dnnmem.estimator.trace import Kind, Trace

_BEYOND = 2
"""Micro-batches that are played after those that a rank holds at once."""
_CLOSE = 0.9
"""Share of the largest peak of requested bytes from which a rank may be the one that reserves most."""
_AS_1F1B = frozenset({"1f1b", "dapple", "pipedream", "2bw", "pipemare", "hetpipe", "zb_h1"})
"""Schedules whose ranks hold at most a micro-batch a stage."""
_TWICE, _UNITS = frozenset({"zbv", "dualpipe", "dualpipev"}), frozenset({"interleaved", "chimera"})
"""Those that hold as many chunks as there are in two, and those that come in units of a micro-batch a stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """The rank of a pipeline that holds most."""

    rank: int
    """Stage, from 0; of `worst_rank`, the rank of the whole plan."""
    held: ReplayResult
    """What its allocator held."""


@collector_paused()
def worst_stage(chunks: Sequence[Trace], plan: Plan, device: Device) -> StageMemory:
    """The rank that reserves most of its `device`; `chunks` are those of one micro-batch, in the order of the model.

    Of the ranks between the first and the last, one of each size is played: the earliest, which holds the most
    micro-batches. A rank whose program asks for a tenth less than another's is not played: fragments of ranks that do
    the same are alike. Raises what the schedule raises.
    """
    steps = _steps(chunks, plan, _grid(plan, microbatches(plan)))
    asked = {r: step.peak_bytes() for r, step in steps.items()}
    enough = max(asked.values()) * _CLOSE
    found = [StageMemory(rank=r, held=replay_on(steps[r], device)) for r in steps if asked[r] >= enough]
    return max(found, key=lambda one: (one.held.peak_reserved_bytes, one.held.peak_allocated_bytes))


def stage_peak(chunks: Sequence[Trace], plan: Plan, device: Device, rank: int) -> ReplayResult:
    """What the allocator of stage `rank` holds. Raises what the schedule raises."""
    return replay_on(stage_step(chunks, _grid(plan, microbatches(plan)), rank, plan.batch.accumulation), device)


def least_peak(chunks: Sequence[Trace], plan: Plan, kinds: frozenset[Kind] = frozenset(Kind)) -> int:
    """What the rank that holds most of `kinds` has alive of them at once, in blocks as the allocator rounds them.

    What is kept for gradients of weights that come later counts as if they came with those of inputs.
    """
    wanted, ranks = plan.batch.accumulation, plan.mesh.pp
    units = plan.pipeline.schedule in _UNITS and wanted > ranks  # their buffers, which lie between, waste nothing here
    grid = _grid(plan, min(wanted, 2 * ranks) if units else microbatches(plan))
    rows = (tuple(s._replace(phase="B") if s.phase == "I" else s for s in row if s.phase != "W") for row in grid.ranks)
    grid = replace(grid, ranks=tuple(rows))
    return max(_stage_peak(chunks, grid, r, wanted, kinds) for r in _candidates(chunks, grid))


def _grid(plan: Plan, played: int) -> Grid:
    return SCHEDULES[plan.pipeline.schedule](plan.mesh.pp, played, plan.pipeline.chunks)


def _steps(chunks: Sequence[Trace], plan: Plan, grid: Grid) -> dict[int, Trace]:
    """The steps of the ranks that may hold most."""
    return {r: stage_step(chunks, grid, r, plan.batch.accumulation) for r in _candidates(chunks, grid)}


def microbatches(plan: Plan) -> int:
    """How many show the peak of each rank: all of them, or those that fill the pipeline and a few more."""
    ranks, wanted, schedule = plan.mesh.pp, plan.batch.accumulation, plan.pipeline.schedule
    if schedule in _UNITS and has_buffers(plan):  # the places to receive all lie between what comes and goes
        return wanted
    if schedule in _AS_1F1B:
        return min(wanted, ranks + _BEYOND)
    if schedule in _TWICE or (schedule in _UNITS and wanted > ranks):
        # a multiple of the ranks that is not the ranks, which have an order of their own
        return min(wanted, 2 * ranks + (_BEYOND if schedule in _TWICE else 0))
    return wanted


def _candidates(chunks: Sequence[Trace], grid: Grid) -> list[int]:
    """The first rank, the last, and of each size between them the one that holds most, the earliest of those."""
    last = len(grid.ranks) - 1
    sizes: dict[tuple[tuple[int, int], ...], int] = {}
    for r in sorted(range(1, last), key=lambda r: -in_flight(grid.ranks[r]) - grid.extra_copies(r)):
        sizes.setdefault(tuple((len(chunks[s].ops), chunks[s].pinned_bytes()) for s in grid.stages[r]), r)
    return sorted({0, *sizes.values(), last})


def stage_step(chunks: Sequence[Trace], grid: Grid, rank: int, microbatches: int) -> Trace:
    """The step of a rank of `grid`, whose stages are `chunks`; what later micro-batches repeat is left out of 1F1B.

    `microbatches` are those of a step, for which there may be more places than there are in `grid`.
    """
    mine, row = _of_rank(chunks, grid, rank)
    return rank_step(
        mine, row, grid.extra_copies(rank), microbatches, folded=_is_folded(grid, rank), peers=grid.peers(rank)
    )


def _stage_peak(chunks: Sequence[Trace], grid: Grid, rank: int, microbatches: int, kinds: frozenset[Kind]) -> int:
    """What is alive of `kinds` in the same step at most."""
    mine, row = _of_rank(chunks, grid, rank)
    return rank_peak(mine, row, grid.extra_copies(rank), microbatches, folded=_is_folded(grid, rank), kinds=kinds)


def _of_rank(chunks: Sequence[Trace], grid: Grid, rank: int) -> tuple[list[Trace], tuple[Step, ...]]:
    """Chunks of a rank, and the steps that show what it holds."""
    row = grid.ranks[rank]
    if len(grid.stages[rank]) == 1 and {step.phase for step in row} == {"F", "B"}:
        few = in_flight(row) + max(_BEYOND, microbatches_behind(chunks[grid.stages[rank][0]]))
        row = tuple(step for step in row if step.microbatch < few)
    return [chunks[s] for s in grid.stages[rank]], row


def _is_folded(grid: Grid, rank: int) -> bool:
    mine = grid.stages[rank]
    return len(mine) == 2 and mine[1] == mine[0] + 1
