"""Rotor is optimal, never needs more than its budget, and is never beaten by less memory or by periodic checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.passes import remat
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.planners.chain import Chain, Stage, chain_of
from dnnmem.estimator.planners.chen import periodic
from dnnmem.estimator.planners.remat import plan_remat
from dnnmem.estimator.planners.rotor import solve
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.segments import parse_segments, segments_text
from tests.estimator.passes.steps import LLAMA, gpt
from tests.estimator.planners.chains import chains, play, ways


@given(chains())
@settings(max_examples=60, deadline=None)
def test_rotor_is_brute_force(chain):
    # GIVEN every way to compute a chain again, with its seconds and peak
    all_ways = [play(chain, runs) for runs in ways(chain.stages, 0, len(chain.stages) - 1)]
    most = max(peak for _, peak in all_ways)
    table = solve(chain, most, slot_bytes=1)
    for budget in range(most + 1):
        # THEN at each budget Rotor takes the least, and what it plans costs that, within the budget
        best = min((seconds for seconds, peak in all_ways if peak <= budget), default=math.inf)
        assert table.seconds_at(budget) == best
        if best < math.inf:
            seconds, peak = play(chain, table.runs(budget))
            assert seconds == best
            assert peak <= budget


@given(chains(most=12, breaks=False), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_rotor_costs_no_more_than_periodic_checkpoints(chain, length):
    seconds, peak = play(chain, periodic(chain, length))
    assert solve(chain, peak, slot_bytes=1).seconds_at(peak) <= seconds


@given(chains(most=12), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_coarse_slots_never_break_the_budget_and_more_memory_never_costs_time(chain, slots):
    most = play(chain, ())[1] + 1
    table = solve(chain, most, slot_bytes=most / slots)
    costs = [table.seconds_at(budget) for budget in range(most + 1)]
    assert costs == sorted(costs, reverse=True)
    for budget, cost in enumerate(costs):
        if cost < math.inf:
            assert play(chain, table.runs(budget))[1] <= budget


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
def test_equal_stages_follow_the_closed_form(count, slots):
    # GIVEN equal stages, and memory for one's tape and for the inputs of `slots` of them, the first among them
    tape = 100
    stage = Stage(
        forward_seconds=1.0, backward_seconds=0.0, input_bytes=1, saved_bytes=tape, gradient_bytes=0, left_bytes=0,
        light_bytes=1, forward_bytes=tape, backward_bytes=tape,
    )  # fmt: skip
    stages = [replace(stage, block=k, follows=k > 0) for k in range(count - 1)]
    chain = Chain(stages=(*stages, stage), base_bytes=0)
    # THEN stages run forward as often as Griewank and Walther (2000) say: once for the tape, and t(n, c) times before
    r = next(r for r in range(count) if math.comb(slots + r, slots) >= count)
    advances = r * count - math.comb(slots + r, r - 1)
    budget = tape + slots  # the state that runs forward takes a place here, as the first input does there
    assert solve(chain, budget, slot_bytes=1).seconds_at(budget) == count + advances


@pytest.mark.parametrize("arguments", [{}, LLAMA], ids=["gpt", "llama"])
def test_plans_keep_real_steps_within_their_budget(arguments):
    # GIVEN a recorded step of eight blocks
    trace = gpt(8, batch=64, **arguments)
    seconds = [float(op.moved_bytes + 1) for op in trace.ops]
    plain = replay_trace(trace).peak_reserved_bytes
    costs, refused = [], []
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.1):
        budget = int(share * plain)
        try:
            plan = plan_remat(trace, budget, lambda: chain_of(trace, seconds))
        except InfeasibleError as error:
            refused.append((budget, error.needed_bytes))
            continue
        # THEN the rewritten step fits, and less memory costs more work
        found = remat.apply(trace, Plan(remat=plan))
        found.check()
        assert replay_trace(found).peak_reserved_bytes <= budget
        costs.append(len(found.ops))
    assert len(costs) >= 4
    assert refused
    assert all(budget < needed <= plain for budget, needed in refused)
    assert costs == sorted(costs)


def test_a_chain_reads_its_numbers_off_the_step():
    trace = gpt(4, batch=16)
    chain = chain_of(trace, [1.0] * len(trace.ops))
    blocks = [stage for stage in chain.stages if stage.block is not None]
    assert [stage.follows for stage in blocks] == [False, True, True, True]
    assert blocks[1] == Stage(**{f: getattr(blocks[2], f) for f in Stage.__slots__} | {"block": 1})
    # AND all that is kept, and all that is alive, is at most the peak
    kept = sum(stage.saved_bytes for stage in chain.stages)
    assert kept + chain.base_bytes <= trace.peak_bytes()
    assert blocks[0].input_bytes == 16 * 32 * 64 * 4


@pytest.mark.parametrize("text", ["0", "0-3(2-3),6", "0-9(0-4(1,3),6-7)"])
def test_segments_are_written_as_read(text):
    assert segments_text(parse_segments(text)) == text
