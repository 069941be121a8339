"""Join networks: branches are found, their order is brute force, and plans of shared blocks are priced call by call."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.errors import InfeasibleError, UnsupportedError
from dnnmem.estimator.passes import remat
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.planners import join as join_planner
from dnnmem.estimator.planners.branches import join_of
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.join import best_order, in_order
from dnnmem.estimator.planners.problem import problem_of
from dnnmem.estimator.planners.solve import solve_problem
from dnnmem.estimator.trace import Phase
from tests.estimator.passes.steps import gpt
from tests.estimator.planners.chains import chains, play, ways
from tests.estimator.planners.joined import joined


def test_branches_are_lists_that_know_nothing_of_each_other():
    assert join_of(joined(shared=False)).branches == ((0, 1, 2, 3), (4, 5, 6, 7, 8, 9))


def test_calls_of_shared_blocks_are_branches():
    # GIVEN one tower of four blocks that is called twice
    trace = joined(shared=True)
    join = join_of(trace)
    # THEN it is two branches, and a block has a number in each
    assert join.branches == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert join.twins == ((0, 4), (1, 5), (2, 6), (3, 7))
    join.trace.check()
    # AND the call that ran last runs backward first
    calls = [
        op.module[0] == "<call 1>" for op in join.trace.ops if op.phase is Phase.BACKWARD and "blocks" in op.module
    ]
    assert calls == sorted(calls, reverse=True)


def test_one_list_of_blocks_is_no_join():
    with pytest.raises(UnsupportedError, match="no join network"):
        join_of(gpt())


@st.composite
def joins(draw):
    """Two branches that are chains, and the loss: blocks are counted on."""
    left, right = draw(chains(most=3, breaks=False)), draw(chains(most=2, breaks=False))
    *first, _ = left.stages
    second = [
        stage if stage.block is None else replace(stage, block=stage.block + len(first)) for stage in right.stages
    ]  # fmt: skip
    branches = tuple(range(len(first))), tuple(range(len(first), len(first) + len(second) - 1))
    return Chain(stages=(*first, *second), base_bytes=0), branches


@given(joins(), st.floats(0.3, 1.0))
@settings(max_examples=40, deadline=None)
def test_the_best_order_is_brute_force(join, share):
    # GIVEN all orders of the branches, and all that each may compute again
    chain, branches = join
    best, most = math.inf, play(chain, ())[1]
    budget = int(share * most) + 1
    for order in permutations(range(2)):
        stages = in_order(chain, branches, order).stages
        stages = tuple(replace(s, block=None if s.block is None else n) for n, s in enumerate(stages))
        other = Chain(stages=stages, base_bytes=0)
        played = (play(other, runs) for runs in ways(stages, 0, len(stages) - 1))
        best = min([best, *(seconds for seconds, peak in played if peak <= budget)])
    # THEN none of them is faster within the budget than the order that is found, in slots of a byte
    order, seconds = best_order(chain, branches, budget, slot_bytes=1)
    assert seconds == best
    assert bool(order) == (best < math.inf)


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_planned_fits_and_less_memory_costs_time(shared):
    problem = problem_of(joined(shared=shared), 1)
    plain = problem.plain()
    times, refused = [], 0
    for share in (0.9, 0.8, 0.6, 0.5, 0.1):
        asked = replace(problem, budget_bytes=int(share * plain.peak_bytes))
        try:
            found = solve_problem(asked)
        except InfeasibleError:
            refused += 1
            continue
        assert found.planner == "join"
        assert "2 branches" in found.why
        assert found.cost.peak_bytes <= asked.budget_bytes
        times.append(found.cost.seconds)
    assert len(times) >= 3
    assert refused
    assert times == sorted(times)


def test_a_shared_block_is_computed_again_once_a_call():
    # GIVEN two calls of four blocks, of which one is computed again
    trace = joined(shared=True)
    again = remat.apply(trace, Plan(remat=Remat(policy="segments", segments="1")))
    again.check()
    # THEN its products run again right before the backward pass of either call
    names = [op.module for op in again.ops if op.phase is Phase.BACKWARD and op.name == "aten.addmm.default"]
    assert names.count(("left", "blocks", "1", "up")) == 2
    places = [k for k, op in enumerate(again.ops) if op.phase is Phase.BACKWARD and op.module[2:3] == ("1",)]
    assert any(after - before > 10 for before, after in pairwise(places))


def test_another_order_is_told_where_it_is_faster():
    # GIVEN a branch that is dear to compute again and runs first, and a cheap one  THEN the note turns them round
    problem = problem_of(joined(shared=False), 1)
    join = join_of(problem.trace)
    chain = problem.chain()
    stages = tuple(
        replace(stage, forward_seconds=stage.forward_seconds * (9 if stage.block in join.branches[0] else 1))
        for stage in chain.stages
    )  # fmt: skip
    chain = replace(chain, stages=stages)
    room = 0.55 * sum(stage.saved_bytes for stage in stages)
    assert best_order(chain, join.branches, room)[0] == (1, 0)
    problem.made.update({"join": join, "chain": chain})
    told = join_planner.advice(replace(problem, budget_bytes=int(chain.base_bytes + room)), join)
    assert told
    assert "blocks 4-9, then blocks 0-3" in told[0]
