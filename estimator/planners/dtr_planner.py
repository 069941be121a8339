"""DTR as a planner: the step's own ops, run on a simulated memory that evicts what is cheap to make again."""

from __future__ import annotations

from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.planners.dtr import HEURISTICS, Played, play
from dnnmem.estimator.planners.op_graph import Graph, graph_of
from dnnmem.estimator.planners.problem import Cost, Found, Problem
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.trace import Phase


def find(problem: Problem) -> Found:
    """The best heuristic's run. It is predicted only: PyTorch cannot evict."""
    trace = problem.trace
    graph = _graph(problem)
    base = trace.pinned_bytes()
    update = max(_update_peak(problem), base)
    if update > problem.budget_bytes:
        raise problem.infeasible(update, "eviction")
    tried = {heuristic: _try(graph, problem.budget_bytes - base, heuristic) for heuristic in HEURISTICS}
    runs = {heuristic: run for heuristic, run in tried.items() if isinstance(run, Played)}
    if not runs:
        needs = min(error.needed_bytes for error in tried.values() if isinstance(error, InfeasibleError))
        raise problem.infeasible(base + needs, "eviction")
    name = min(runs, key=lambda name: runs[name].seconds)
    once = sum(work.seconds for work in graph.works)
    plain = problem.plain()
    told = ", ".join(f"{n} {r.seconds / once - 1:+.1%} work, {r.evictions} evictions" for n, r in runs.items())
    cost = Cost(peak_bytes=max(base + runs[name].peak_bytes, update), seconds=plain.seconds + runs[name].seconds - once)
    return Found(cost=cost, schedule=f"{name}: {told}", notes=("simulated: PyTorch has no such runtime",))


def _try(graph: Graph, budget_bytes: int, heuristic: str) -> Played | InfeasibleError:
    try:
        return play(graph, budget_bytes, heuristic)
    except InfeasibleError as error:
        return error


def _graph(problem: Problem) -> Graph:
    if "op graph" not in problem.made:
        problem.made["op graph"] = graph_of(problem.trace, problem.seconds())
    found = problem.made["op graph"]
    assert isinstance(found, Graph)  # noqa: S101  (for mypy)
    return found


def _update_peak(problem: Problem) -> int:
    """Most bytes alive in the update, which nothing of this makes smaller."""
    live, peak = problem.trace.pinned_bytes(), 0
    for op in problem.trace.ops:
        for event in op.events:
            live += event.nbytes
            peak = max(peak, live) if op.phase is Phase.STEP else peak
    return peak


PLANNER = Planner(
    name="dtr", words="eviction as memory runs out, simulated (Kirisame et al. 2020)", needs="any graph", find=find,
    applied=False,
)  # fmt: skip
