"""Mixed storage of time steps is brute force, and fits real steps into their budgets."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.errors import InfeasibleError, UnsupportedError
from dnnmem.estimator.planners import gruslys
from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.planners.gruslys import Steps
from dnnmem.estimator.planners.problem import problem_of
from dnnmem.estimator.planners.rotor import solve
from tests.estimator.passes.steps import gpt
from tests.estimator.planners.recurrent import unrolled


@cache
def ways(t, state, internal, f, b, light, heavy):
    """Seconds and memory of every schedule of `t` steps."""
    if t == 1:
        return [(f + b, max(heavy, internal))]
    mine = (state, internal, f, b, light, heavy)
    found = [(f + b + s, max(heavy, internal, m + internal)) for s, m in ways(t - 1, *mine)]
    for y in range(1, t):
        for s1, m1 in ways(t - y, *mine):
            found += [(y * f + s1 + s2, max(light, m1 + state, m2)) for s2, m2 in ways(y, *mine)]
    return found


numbers = st.integers(1, 4)


@given(st.integers(1, 6), numbers, numbers, numbers, numbers, numbers, numbers)
@settings(max_examples=60, deadline=None)
def test_mixed_storage_is_brute_force(t, state, internal, f, b, light, heavy):
    found = Steps(
        state=state, internal=internal, forward_seconds=f, backward_seconds=b, slots=30, light=light, heavy=heavy
    )
    all_ways = ways(t, state, internal, f, b, light, heavy)
    row = found.seconds(t)
    for m in range(31):
        assert row[m] == min((s for s, needs in all_ways if needs <= m), default=math.inf)
        if row[m] < math.inf:
            again = sum(_again(run) for run in found.schedule(t, m))
            assert row[m] == t * (f + b) + again * f


def _again(run):
    return run.last - run.first + 1 + sum(_again(inner) for inner in run.inner)


@pytest.mark.parametrize("count", [3, 8, 13])
def test_equal_steps_are_planned_as_by_rotor(count):
    stage = Stage(
        block=0, follows=True, forward_seconds=2.0, backward_seconds=3.0, input_bytes=1, saved_bytes=4,
        gradient_bytes=0, left_bytes=0, light_bytes=1, forward_bytes=4, backward_bytes=5,
    )  # fmt: skip
    stages = (*(replace(stage, block=k, follows=k > 0) for k in range(count - 1)), replace(stage, block=None))
    table = solve(Chain(stages=stages, base_bytes=0), 60.0, slot_bytes=1)
    mine = Steps(state=1, internal=4, forward_seconds=2.0, backward_seconds=3.0, slots=60, light=1, heavy=5)
    assert mine.seconds(count).tolist() == [table.seconds_at(m) for m in range(61)]


@pytest.mark.parametrize("cell", ["lstm", "tanh", "labels"])
def test_real_time_steps_keep_their_budget(cell):
    # GIVEN a recorded network that calls its cell for each of 24 time steps
    problem = problem_of(unrolled(cell), 1 << 40)
    plain = problem.plain()
    times, refused = [], []
    for share in (0.95, 0.9, 0.8, 0.7, 0.3):
        budget = int(share * plain.peak_bytes)
        try:
            found = gruslys.find(replace(problem, budget_bytes=budget))
        except InfeasibleError as error:
            refused.append((budget, error.needed_bytes))
            continue
        cost = problem.cost(found)
        assert cost.peak_bytes <= budget
        assert (found.cost is None) == (cell != "tanh")  # which is written out: no plan says it
        times.append(cost.seconds)
    # THEN what it answers fits, and less memory costs more time
    assert len(times) >= 2
    assert refused
    assert all(budget < needed <= plain.peak_bytes for budget, needed in refused)
    assert times == sorted(times)
    assert times[0] > plain.seconds


def test_blocks_are_no_time_steps():
    with pytest.raises(UnsupportedError, match="no unrolled recurrent network"):
        gruslys.find(problem_of(gpt(), 1))
