"""Join networks as a planner: what each branch computes again, and which of them had better run first.

    forward    left: keeps inputs of runs   right: keeps more   join      backward   join'   right'   left again, left'

Beaumont, Herrmann, Pallez and Shilova 2020, "Optimal memory-aware backpropagation of deep join networks", reverse the
branches in any order. PyTorch reverses what ran last first, branch by branch: the branches of a program are one chain,
on which Rotor's program and POFO's are exact. Only the order in which the program calls them is free, and costs time.

A branch that runs the blocks of another (a siamese network) does what that one does: a plan names blocks, not calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Remat
from dnnmem.estimator.planners import chen, pofo_planner, rotor_planner
from dnnmem.estimator.planners.branches import Join, join_of
from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.planners.chain_plans import PLANS, as_found
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.rotor import solve
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run, parse_segments, segments_text

_ORDERS = 6
"""Orders of branches that are tried, at most: all of three branches."""
_WORTH = 0.002
"""Share of a step by which another order must be faster to be told."""


def find(problem: Problem) -> Found:
    """The fastest plan that fits; a note says if the branches had better run in another order."""
    join = problem.once("join", lambda: join_of(problem.trace))
    found = cheapest(problem, problem.once("join plans", lambda: _plans(problem, join)), what="plan of branches")
    return replace(found, notes=(*found.notes, *advice(problem, join)))


def _plans(problem: Problem, join: Join) -> list[Found]:
    apart = _apart(problem, join)
    if apart is problem:
        return pofo_planner.plans(problem) if problem.cluster.host.bytes_per_s else rotor_planner.plans(problem)
    tried = {**_folded_runs(folded(apart.chain(), join.twins)), **_mirrored(apart, join.twins)}
    return [_for_all(apart, runs, join) for runs in tried if runs]


def _apart(problem: Problem, join: Join) -> Problem:
    """The problem of the step whose calls are lists of their own; it is priced by the step itself."""
    if join.trace is problem.trace:
        return problem
    return replace(problem, trace=join.trace, recorded=join_of(problem.recorded).trace, known={}, made={})


def folded(chain: Chain, twins: Sequence[Sequence[int]]) -> Chain:
    """A chain in which all calls of a block are one stage: as they keep at the same time, so in the same way."""
    of = {stage.block: stage for stage in chain.stages}
    calls = {blocks[0]: [of[block] for block in blocks if block in of] for blocks in twins}
    stages: list[Stage] = []
    for stage in chain.stages:
        if stage.block is not None and stage.block not in calls:
            continue
        some = calls.get(stage.block, [stage]) if stage.block is not None else [stage]
        stages.append(
            replace(
                stage, forward_seconds=sum(s.forward_seconds for s in some),
                backward_seconds=sum(s.backward_seconds for s in some),
                spared_seconds=sum(s.spared_seconds for s in some), input_bytes=sum(s.input_bytes for s in some),
                saved_bytes=sum(s.saved_bytes for s in some), forward_bytes=sum(s.forward_bytes for s in some),
                backward_bytes=max(s.backward_bytes + s.saved_bytes * (len(some) - 1) for s in some),
            )
        )  # fmt: skip
    return replace(chain, stages=tuple(stages))


def _folded_runs(chain: Chain) -> dict[tuple[Run, ...], None]:
    """Rotor's for budgets all over the range, and those of equal length."""
    most = float(sum(stage.saved_bytes for stage in chain.stages) + max(s.backward_bytes for s in chain.stages))
    table = solve(chain, most)
    least = table.least_bytes()
    aims = (least + (most - least) * k / (PLANS - 1) for k in range(PLANS)) if math.isfinite(least) else ()
    longest = max((end - begin for begin, end in chen.groups(chain)), default=0)
    found = dict.fromkeys(table.runs(aim) for aim in aims)
    return {**found, **dict.fromkeys(chen.periodic(chain, length) for length in range(1, longest + 1))}


def _mirrored(apart: Problem, twins: Sequence[Sequence[int]]) -> dict[tuple[Run, ...], None]:
    """Rotor's where each call is planned by itself, as if all calls did what the first one does, or the last."""
    count = sum(map(len, twins))
    found: dict[tuple[Run, ...], None] = {}
    for plan in rotor_planner.plans(apart):
        runs = parse_segments(plan.remat.segments, count) if plan.remat.policy == "segments" else ()
        for call in (0, -1):
            own = {calls[call]: calls[0] for calls in twins}
            mine = (_shifted(run, own[run.first] - run.first) for run in runs if run.first in own)
            found[tuple(sorted(mine, key=lambda run: run.first))] = None
    return found


def _for_all(apart: Problem, runs: Sequence[Run], join: Join) -> Found:
    everywhere = [_shifted(run, block - run.first) for run in runs for block in join.twins[run.first]]
    found = as_found(apart, sorted(everywhere, key=lambda run: run.first))
    return replace(found, remat=Remat(policy="segments", segments=segments_text(runs)))


def _shifted(run: Run, by: int) -> Run:
    return Run(first=run.first + by, last=run.last + by, inner=tuple(_shifted(inner, by) for inner in run.inner))


def advice(problem: Problem, join: Join) -> tuple[str, ...]:
    """A sentence where another order of the branches is faster."""
    chain = problem.once("join chain", lambda: _apart(problem, join).chain())
    room = problem.budget_bytes - chain.base_bytes
    order, seconds = best_order(chain, join.branches, room)
    own = _seconds(chain, room)
    whole = problem.plain().seconds
    if not order or own - seconds < _WORTH * whole:
        return ()
    names = ", then ".join(f"blocks {join.branches[n][0]}-{join.branches[n][-1]}" for n in order)
    gain = f"{(own - seconds) / whole:.1%} of a plain step less" if own < float("inf") else "and fit"
    return (f"called in another order, {names}, the branches would take {gain} (blocks count on in second calls)",)


def best_order(
    chain: Chain, branches: Sequence[Sequence[int]], budget_bytes: float, *, slot_bytes: float | None = None
) -> tuple[tuple[int, ...], float]:
    """In which order branches take the least time within `budget_bytes` above the chain's base, and that time.

    Branches are named by their place in `branches`; `slot_bytes` is Rotor's. No order where nothing fits.
    """
    tried = list(permutations(range(len(branches))))[:_ORDERS]
    timed = [(_seconds(in_order(chain, branches, order), budget_bytes, slot_bytes), order) for order in tried]
    seconds, order = min(timed)
    return (order if seconds < float("inf") else ()), seconds


def in_order(chain: Chain, branches: Sequence[Sequence[int]], order: Sequence[int]) -> Chain:
    """The chain with its branches in another order; what runs between two of them goes with the later one."""
    at = {stage.block: s for s, stage in enumerate(chain.stages) if stage.block is not None}
    ends = [at[blocks[-1]] + 1 for blocks in branches]
    begins = [0, *ends[:-1]]
    stages = [stage for n in order for stage in chain.stages[begins[n] : ends[n]]]
    return replace(chain, stages=(*stages, *chain.stages[ends[-1] :]))


def _seconds(chain: Chain, budget_bytes: float, slot_bytes: float | None = None) -> float:
    """Rotor's."""
    if budget_bytes <= 0:
        return float("inf")
    return solve(chain, budget_bytes, slot_bytes=slot_bytes).seconds_at(budget_bytes)


def suits(problem: Problem) -> str:
    """For every join network."""
    try:
        join = problem.once("join", lambda: join_of(problem.trace))
    except UnsupportedError:
        return ""
    counts = " and ".join(str(len(blocks)) for blocks in join.branches)
    shared = ", which share blocks," if any(len(twins) > 1 for twins in join.twins) else ""
    return f"its {len(join.branches)} branches of {counts} blocks{shared} meet before the loss"


PLANNER = Planner(
    name="join", words="branches that meet: what each computes again, and their order (Beaumont et al. 2020)",
    needs="two branches of blocks or more", find=find, suits=suits,
)  # fmt: skip
