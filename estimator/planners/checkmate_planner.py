"""Checkmate as a planner: of blocks in a chain, what to keep when, by integer programming; Rotor's plan to begin with.

A schedule in which every block runs again once, and runs of blocks one after the other, is a plan that can be applied:
`segments`. Any other is predicted only, and drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.planners import rotor_planner
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.chain_plans import table_of
from dnnmem.estimator.planners.checkmate import Answer, schedule
from dnnmem.estimator.planners.graph_schedule import Schedule, drawn, plain, schedule_of, seconds_of
from dnnmem.estimator.planners.op_graph import Graph, graph_of_chain
from dnnmem.estimator.planners.problem import Cost, Found, Problem, cheapest
from dnnmem.estimator.planners.remat import named
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run

_LOOKS = 4
"""Budgets that are planned for at most: the time limit is shared by them."""


def find(problem: Problem) -> Found:
    """The fastest schedule of the chain's stages that fits, planned for less where the step itself needs more."""
    chain = problem.chain()
    graph, table = graph_of_chain(chain), table_of(problem)
    tried: list[Found] = []
    with suppress(InfeasibleError):
        tried.append(replace(rotor_planner.find(problem), notes=("Rotor's plan: none was found that is faster",)))
    aim = float(problem.budget_bytes - chain.base_bytes)
    for _ in range(_LOOKS):
        runs = table.runs(aim) if table.seconds_at(aim) < math.inf else None
        start = None if runs is None else schedule_of(graph, _works(chain, graph, runs))
        try:
            answer = schedule(graph, aim, problem.time_limit_seconds / _LOOKS, start=start)
        except InfeasibleError:
            break
        tried.insert(0, _found(problem, graph, answer))
        if (needs := problem.cost(tried[0]).peak_bytes) <= problem.budget_bytes:
            break
        aim -= max(needs - problem.budget_bytes, 0.02 * problem.budget_bytes)
    return cheapest(problem, tried, what="schedule")


def _found(problem: Problem, graph: Graph, answer: Answer) -> Found:
    chain = problem.chain()
    runs = _runs(chain, graph, answer.schedule)
    told = () if answer.optimal else (f"the best schedule may be faster by {answer.gap:.1%}",)
    if runs is not None:
        return Found(remat=named(chain, runs), optimal=answer.optimal, gap=answer.gap, notes=told)
    extra = answer.seconds - seconds_of(graph, plain(graph))
    cost = Cost(peak_bytes=chain.base_bytes + answer.peak_bytes, seconds=problem.plain().seconds + extra)
    return Found(
        cost=cost, optimal=answer.optimal, gap=answer.gap, schedule=drawn(graph, answer.schedule),
        notes=(*told, "its peak is of requested bytes: no plan expresses the schedule, so that it cannot be replayed"),
    )  # fmt: skip


def _works(chain: Chain, graph: Graph, runs: Sequence[Run]) -> list[int]:
    """What a plan of runs does in order, as works of the chain's graph."""
    index = {(work.name, work.number): k for k, work in enumerate(graph.works)}
    at = {stage.block: s for s, stage in enumerate(chain.stages) if stage.block is not None}
    found: list[int] = []

    def play(s: int, t: int, inside: Sequence[Run]) -> None:
        end = len(chain.stages) - 1
        begins = {at[run.first]: run for run in inside}
        tape: list[tuple[int, Run | None]] = []
        k = s
        while k <= t:
            run = begins.get(k)
            last = at[run.last] if run else k
            way = "light" if run else "again" if k == t < end else "whole"
            found.extend(index[way, j] for j in range(k, last + 1))
            tape.append((k, run))
            k = last + 1
        for k, run in reversed(tape):
            if run:
                play(k, at[run.last], run.inner)
            else:
                found.append(index["backward", k])

    play(0, len(chain.stages) - 1, runs)
    return found


def _runs(chain: Chain, graph: Graph, found: Schedule) -> tuple[Run, ...] | None:
    """The runs of a schedule that does each block once in the forward pass, and at most once in the backward pass."""
    turn = next(t for t, stage in enumerate(found) if any(graph.works[k].backward for k in stage.done))
    again = [graph.works[k] for stage in found[turn:] for k in stage.done if not graph.works[k].backward]
    first = [graph.works[k].number for stage in found[:turn] for k in stage.done]
    if any(work.name == "light" for work in again) or len(set(first)) < len(first):
        return None
    numbers = sorted(work.number for work in again)
    if len(set(numbers)) < len(numbers):
        return None
    runs: list[Run] = []
    for s in numbers:
        block, at_hand = chain.stages[s].block, s - 1 in found[turn].held or s == 0
        if block is None:
            return None
        if not at_hand and runs and runs[-1].last == block - 1:
            runs[-1] = Run(first=runs[-1].first, last=block)
        else:
            runs.append(Run(first=block, last=block))
    return tuple(runs)


PLANNER = Planner(
    name="checkmate", words="what to keep when, by integer programming (Jain et al. 2020)", needs="a chain of blocks",
    find=find,
)  # fmt: skip
