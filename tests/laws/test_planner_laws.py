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
from dnnmem.estimator.segments import Run, parse_segments, segments_text
from tests.estimator.passes.steps import LLAMA, gpt

SMALL = st.integers(0, 6)


def play(chain, runs):
    """Seconds and peak of a chain whose `runs` are computed again, by going through it."""
    return _play(chain.stages, 0, len(chain.stages) - 1, {run.first: run for run in runs}, 0)


def _play(stages, s, t, runs, live):
    gradient, peak, seconds, tape, k = stages[t].gradient_bytes, 0, 0.0, [], s
    while k <= t:
        run = runs.get(k)
        last = run.last if run else k
        for j in range(k, last + 1):
            need = stages[j].light_bytes + (stages[j].input_bytes if j > k else 0) if run else stages[j].forward_bytes
            peak = max(peak, live + gradient + need)
            seconds += stages[j].forward_seconds
        kept = stages[last + 1].input_bytes if run else stages[k].saved_bytes
        live += kept
        tape.append((k, run, kept))
        k = last + 1
    for k, run, kept in reversed(tape):
        live -= kept
        if run:
            again, most = _play(stages, k, run.last, {inner.first: inner for inner in run.inner}, live)
            seconds, peak = seconds + again, max(peak, most)
            live += sum(stage.left_bytes for stage in stages[k : run.last + 1])
        else:
            peak = max(peak, live + stages[k].backward_bytes)
            seconds += stages[k].backward_seconds
            if k == t < len(stages) - 1:  # a run that is computed again ends with what its last stage needs
                seconds -= stages[k].spared_seconds
            live += stages[k].left_bytes
    return seconds, peak


def ways(stages, s, t):
    """All that can be computed again of the stages s to t."""
    if s == t:
        return [()]
    found = list(ways(stages, s + 1, t))
    for u in range(s + 1, t + 1):
        if stages[u - 1].block is None or (u - 1 > s and not stages[u - 1].follows):
            break
        found += [
            (Run(first=s, last=u - 1, inner=inner), *rest)
            for inner in ways(stages, s, u - 1)
            for rest in ways(stages, u, t)
        ]
    return found


@st.composite
def chains(draw, *, most=6, breaks=True):
    """Blocks with small numbers, then the loss; some do not follow the one before."""
    count = draw(st.integers(1, most))
    stages = []
    for k in range(count + 1):
        saved, forward = draw(st.integers(1, 8)), draw(st.integers(1, 5))
        stages.append(
            Stage(
                block=k if k < count else None,
                follows=0 < k < count and (draw(st.integers(0, 4)) > 0 or not breaks),
                forward_seconds=float(forward),
                spared_seconds=float(draw(st.integers(0, forward))),
                backward_seconds=float(draw(st.integers(1, 5))),
                input_bytes=draw(SMALL) if k else 0,
                saved_bytes=saved,
                gradient_bytes=draw(SMALL) if k < count else 0,
                left_bytes=draw(st.integers(0, 3)),
                light_bytes=draw(SMALL),
                forward_bytes=saved + draw(SMALL),
                backward_bytes=saved + draw(SMALL),
            )
        )
    return Chain(stages=tuple(stages), base_bytes=0)


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
