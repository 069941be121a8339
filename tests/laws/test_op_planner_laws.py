"""Planners of ops on a recorded step: their plans fit, more memory never costs time, ops cost less than blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.planners import milp
from dnnmem.estimator.planners.graph_schedule import peak_of, plain, seconds_of
from dnnmem.estimator.planners.op_graph import graph_of
from dnnmem.estimator.planners.problem import problem_of
from dnnmem.estimator.planners.solve import solve_problem
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Phase
from tests.estimator.passes.steps import gpt, passes_peak

solver = pytest.mark.skipif(not milp.available(), reason="no HiGHS here: pip install 'dnnmem[plan]'")


@pytest.fixture(scope="module")
def problem():
    """A step of eight blocks."""
    return problem_of(gpt(8, batch=64), 1 << 60, time_limit_seconds=3)


@pytest.mark.parametrize(
    "name", ["hierarchical", "min-cut", "kusumoto", "dtr", pytest.param("checkmate", marks=solver)]
)
def test_planners_keep_real_steps_within_their_budget(name, problem):
    most, costs = problem.plain().peak_bytes, []
    for share in (0.95, 0.85, 0.75, 0.7):
        found = solve_problem(replace(problem, budget_bytes=int(share * most)), name)
        # THEN the rewritten step fits
        assert found.cost.peak_bytes <= share * most
        if found.plan is not None:
            [step] = rewrite(problem.recorded, found.plan)
            step.check()
            assert replay_trace(step).peak_reserved_bytes <= share * most
        costs.append(found.cost.seconds)
    # AND less memory never saves time
    assert costs == sorted(costs)
    with pytest.raises(InfeasibleError) as error:
        solve_problem(replace(problem, budget_bytes=int(0.2 * most)), name)
    assert error.value.needed_bytes > 0.2 * most


def test_ops_of_blocks_cost_less_than_whole_blocks(problem):
    for share in (0.9, 0.8, 0.7):
        asked = replace(problem, budget_bytes=int(share * problem.plain().peak_bytes))
        assert solve_problem(asked, "hierarchical").cost.seconds <= solve_problem(asked, "rotor").cost.seconds


@solver
def test_checkmate_never_takes_longer_than_rotor_on_a_real_step(problem):
    for share in (0.9, 0.7):
        asked = replace(problem, budget_bytes=int(share * problem.plain().peak_bytes))
        assert solve_problem(asked, "checkmate").cost.seconds <= solve_problem(asked, "rotor").cost.seconds


def test_the_least_memory_with_one_recomputation_is_less_than_full(problem):
    budget = replay_trace(rewrite(problem.recorded, Plan(remat=Remat(policy="full")))[0]).peak_reserved_bytes
    found = solve_problem(replace(problem, budget_bytes=budget), "feng-huang")
    assert found.cost.peak_bytes <= budget


def test_a_graph_of_a_step_has_its_peak():
    # GIVEN a step  THEN its graph needs, run plainly, what its forward and backward passes do; fewer bytes are gaps
    trace = gpt(3, batch=16)
    graph = graph_of(trace, [1.0] * len(trace.ops))
    assert peak_of(graph, plain(graph)) == pytest.approx(passes_peak(trace), rel=0.02)
    assert seconds_of(graph, plain(graph)) == sum(op.phase is not Phase.STEP for op in trace.ops)
