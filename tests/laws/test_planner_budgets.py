"""Every registered planner keeps its budget when its plan really runs, and less memory never makes a step faster."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import InfeasibleError, UnsupportedError
from dnnmem.estimator.planners.problem import problem_of
from dnnmem.estimator.planners.solve import planners, solve_problem
from dnnmem.profilers.record_sizes import record_batches
from dnnmem.profilers.request import Request
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.laws.run_plans import run_plans

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
SMALL = {"layers": "8", "width": "256", "heads": "4", "vocab": "2000", "context": "256"}
SHARES = (0.0, 0.4, 0.8)
"""Budgets, between the least that any planner keeps and the plain step's peak."""

EQUAL = 1e-6
"""Seconds that are nearer, as a share, are one to planners."""


def request_of(root):
    return Request(target=str(root / "sample_models" / "gpt.py"), batch_size=16, seq_len=256, args=SMALL)


@cache
def found_by(root):
    """(planner, budget) -> its answer, None where it has none; budgets ascend."""
    asked = replace(request_of(root), device="fake", gpu=GPU)
    [trace] = record_batches(asked, (16,), few=False, cache=cache_folder(os.environ)).traces.values()
    problem = problem_of(trace, 1, cluster=find_cluster(GPU), time_limit_seconds=2.0)
    most = problem.plain().peak_bytes
    least = min((least_of(problem, name) for name in planners()), default=most)
    sizes = [int(least + share * (most - least)) for share in SHARES]
    return {(name, size): answer(replace(problem, budget_bytes=size), name) for name in planners() for size in sizes}


def least_of(problem, name):
    try:
        return solve_problem(problem, name).cost.peak_bytes
    except InfeasibleError as error:
        return error.needed_bytes
    except UnsupportedError:
        return problem.plain().peak_bytes


def answer(problem, name):
    try:
        return solve_problem(problem, name)
    except (InfeasibleError, UnsupportedError):
        return None


def seconds(root, name):
    """What the planner's steps take, from the largest budget that it has an answer to, down."""
    return [found.cost.seconds for (planner, _), found in reversed(found_by(root).items()) if planner == name and found]


def test_what_runs_keeps_its_budget(root):
    # GIVEN the plans of all planners for all budgets  WHEN each runs on a virtual GPU
    found = {key: solution for key, solution in found_by(root).items() if solution and solution.plan}
    plans = list(dict.fromkeys(solution.plan for solution in found.values()))
    ran = dict(zip(plans, run_plans(request_of(root), plans, GPU), strict=True))
    assert {planner for planner, _ in found} >= {"rotor", "chen"}
    # THEN none reserves more than its budget
    over = {
        key: (ran[solution.plan], key[1]) for key, solution in found.items() if not within(ran[solution.plan], key[1])
    }
    assert over == {}


@pytest.mark.parametrize("shared", ["0", "1"])
def test_branches_keep_their_budget(shared, root):
    # GIVEN two towers that meet, or one that is called twice
    target = str(root / "tests" / "laws" / "programs" / "branches.py")
    request = Request(target=target, batch_size=65536, args={"shared": shared})
    asked = replace(request, device="fake", gpu=GPU)
    [trace] = record_batches(asked, (65536,), few=False, cache=cache_folder(os.environ)).traces.values()
    problem = problem_of(trace, 1, cluster=find_cluster(GPU))
    sizes = [int(share * problem.plain().peak_bytes) for share in (0.5, 0.65, 0.8)]
    # WHEN what is planned for them runs on a virtual GPU
    found = [solve_problem(replace(problem, budget_bytes=size)) for size in sizes]
    assert {solution.planner for solution in found} == {"join"}
    ran = run_plans(request, [solution.plan for solution in found], GPU)
    # THEN it needs what was predicted, which is within the budget
    assert ran == [solution.cost.peak_bytes for solution in found]
    assert all(peak <= size for peak, size in zip(ran, sizes, strict=True))


def within(peak, budget):
    return isinstance(peak, int) and peak <= budget


@pytest.mark.parametrize("name", [*planners()])
def test_less_memory_never_makes_a_step_faster(name, root):
    found = seconds(root, name)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("better", "other"),
    [
        ("rotor", "chen"), ("rotor", "chen-recursive"), ("checkmate", "rotor"), ("multilevel", "rotor"),
        ("multilevel-disk", "rotor"), ("pofo", "rotor"), ("pofo", "offload"), ("pofo", "multilevel"),
    ],
)  # fmt: skip
def test_exact_planners_are_no_slower(better, other, root):
    found = found_by(root)
    for (name, budget), solution in found.items():
        if name == other and solution is not None:
            mine = found[better, budget]
            assert mine is not None
            assert mine.cost.seconds <= solution.cost.seconds * (1 + EQUAL)
