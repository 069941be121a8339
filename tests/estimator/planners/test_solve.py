"""Auto picks by structure, and no planner answers more slowly than it did for less memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.planners import hierarchical
from dnnmem.estimator.planners import solve as solving
from dnnmem.estimator.planners.problem import Cost, Found, problem_of
from dnnmem.estimator.planners.solve import AUTO, Planner, solve, solve_problem
from tests.estimator.passes.steps import gpt
from tests.estimator.planners.joined import joined
from tests.estimator.planners.recurrent import unrolled

STEPS = {
    "hierarchical": (lambda: gpt(8, batch=16), "8 of its 8 blocks are alike"),
    "pofo": (lambda: gpt(6, batch=16), "its 6 blocks run one after the other"),
    "join": (lambda: joined(shared=True), "2 branches of 4 and 4 blocks, which share blocks"),
    "gruslys": (lambda: unrolled("lstm"), "unrolled over 24 time steps"),
}


@pytest.mark.parametrize("name", [*STEPS])
def test_auto_picks_by_structure_and_says_why(name, monkeypatch):
    # GIVEN a step, and 8 equal blocks that are a deep stack
    monkeypatch.setattr(hierarchical, "_DEEP", 8)
    make, why = STEPS[name]
    trace, cluster = make(), find_cluster("h100:1")
    plain = problem_of(trace, 1, cluster=cluster).plain()
    # WHEN a plan is asked for  THEN the planner for its structure answers
    found = solve(trace, int(0.9 * plain.peak_bytes), cluster=cluster)
    assert found.planner == name
    assert why in found.why
    assert found.cost.peak_bytes <= 0.9 * plain.peak_bytes


class Search:
    """A planner that runs out of time: what it says for each budget."""

    def __init__(self, answers):
        self.answers = answers

    def find(self, problem):
        if problem.budget_bytes not in self.answers:
            raise InfeasibleError("nothing was found in time", needed_bytes=problem.budget_bytes + 1)
        return Found(cost=Cost(peak_bytes=problem.budget_bytes, seconds=self.answers[problem.budget_bytes]))


@pytest.mark.parametrize("name", ["search", AUTO])
def test_more_memory_never_costs_time(name, monkeypatch):
    # GIVEN a search that finds less where it is given more, and then nothing
    search = Search({100: 3.0, 200: 2.0, 300: 5.0})
    planner = Planner(name="search", words="", needs="", find=search.find, suits=lambda _: "it suits")
    monkeypatch.setattr(solving, "planners", lambda: {"search": planner})
    problem = problem_of(gpt(2), 1, cluster=find_cluster("h100:1"))
    # WHEN it is asked for ever larger budgets  THEN what it knows for less memory counts too
    found = [solve_problem(replace(problem, budget_bytes=budget), name).cost.seconds for budget in (100, 200, 300, 400)]
    assert found == [3.0, 2.0, 2.0, 2.0]
    # AND it never takes what needs more than the budget
    assert solve_problem(replace(problem, budget_bytes=100), name).cost.seconds == 3.0
    with pytest.raises(InfeasibleError):
        solve_problem(replace(problem, budget_bytes=50), name)
