"""What holds for every step and every pipeline: lanes bound the step, waits add up, bubbles are those of the papers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.pipeline_timing import pipeline_seconds
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.simulate import simulate
from dnnmem.estimator.trace import Lane, Op
from tests.estimator.schedules.grids import made

SECONDS = st.floats(0, 10, allow_subnormal=False)
STORAGES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Op], list[float], list[float]]:
    """Ops on four lanes over six storages, their seconds and the host's."""
    ops = draw(
        st.lists(
            st.builds(Op, name=st.just("op"), lane=st.sampled_from(Lane), reads=STORAGES, writes=STORAGES), max_size=30
        )
    )
    times = st.lists(SECONDS, min_size=len(ops), max_size=len(ops))
    return ops, draw(times), draw(times)


@given(steps())
def test_a_step_takes_at_least_its_longest_lane_and_at_most_all_of_them(step):
    timing = simulate(*step)
    lanes = [*timing.busy.values(), timing.host_seconds]
    assert max(lanes) <= timing.seconds + 1e-9
    assert timing.seconds <= sum(lanes) + 1e-9


@given(steps())
def test_work_and_waits_of_the_compute_lane_are_the_step(step):
    timing = simulate(*step)
    assert all(waited >= 0 for waited in timing.exposed.values())
    assert timing.busy[Lane.COMPUTE] + sum(timing.exposed.values()) == pytest.approx(timing.seconds)


@given(steps())
def test_no_lane_runs_two_ops_at_once_and_no_op_before_it_is_issued(step):
    ops, _, host = step
    timing = simulate(*step)
    done = dict.fromkeys(Lane, 0.0)
    issued = 0.0
    for i, op in enumerate(ops):
        issued += host[i]
        assert timing.start[i] >= max(done[op.lane], issued) - 1e-9
        done[op.lane] = timing.end[i]


@given(steps())
def test_nothing_is_read_before_it_is_written_nor_overwritten_while_it_is_used(step):
    ops = step[0]
    timing = simulate(*step)
    for i, op in enumerate(ops):
        for j in range(i):
            touched = set(ops[j].writes) & {*op.reads, *op.writes} or set(ops[j].reads) & set(op.writes)
            if touched or (op.lane is not Lane.COMPUTE and ops[j].lane is Lane.COMPUTE):
                assert timing.end[j] <= timing.start[i] + 1e-9


@given(steps(), st.data())
def test_a_longer_op_never_makes_a_shorter_step(step, data):
    # GIVEN a step  WHEN one of its ops takes longer
    ops, seconds, host = step
    more = [*seconds]
    if more:
        more[data.draw(st.integers(0, len(more) - 1))] += data.draw(SECONDS)
    # THEN it does not end earlier
    assert simulate(ops, more, host).seconds >= simulate(ops, seconds, host).seconds - 1e-9


@given(steps(), st.floats(0.1, 10))
def test_a_machine_of_twice_the_speed_takes_half_the_time(step, factor):
    ops, seconds, host = step
    fast = simulate(ops, [s * factor for s in seconds], [h * factor for h in host])
    assert fast.seconds == pytest.approx(factor * simulate(*step).seconds)


@given(st.integers(1, 8), st.integers(1, 16), st.sampled_from(["gpipe", "1f1b"]))
def test_the_bubble_of_gpipe_and_1f1b_is_that_of_the_papers(p, m, schedule):
    # GIVEN p equal stages and m micro-batches  THEN every rank waits (p - 1) / (m + p - 1) of the time
    timing = pipeline_seconds(SCHEDULES[schedule](p, m, 1), [[1.0]] * p, [[2.0]] * p, 0.0)
    assert [bubble / timing.seconds for bubble in timing.bubble] == pytest.approx([(p - 1) / (m + p - 1)] * p)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 4))
def test_v_chunks_make_the_bubble_v_times_smaller(p, turns, v):
    # GIVEN m = turns * p micro-batches of 3 seconds in v equal chunks  THEN the bubble is (p - 1) / (v m) of the work
    m = turns * p
    timing = pipeline_seconds(SCHEDULES["interleaved"](p, m, v), [[1 / v] * v] * p, [[2 / v] * v] * p, 0.0)
    assert [bubble / (3 * m) for bubble in timing.bubble] == pytest.approx([(p - 1) / (v * m)] * p)


@given(st.integers(1, 8), st.integers(1, 16))
def test_1f1b_holds_at_most_a_microbatch_a_stage(p, m):
    # GIVEN rank r of p  THEN it holds min(p - r, m) of them; GPipe holds all
    ones = [[1.0]] * p
    assert pipeline_seconds(SCHEDULES["1f1b"](p, m, 1), ones, ones).in_flight == tuple(min(p - r, m) for r in range(p))
    assert pipeline_seconds(SCHEDULES["gpipe"](p, m, 1), ones, ones).in_flight == (m,) * p


@given(st.integers(2, 6), st.integers(1, 3))
def test_one_chunk_interleaved_takes_as_long_as_1f1b(p, turns):
    costs = ([[1.0]] * p, [[2.0]] * p)
    seconds = {
        name: pipeline_seconds(SCHEDULES[name](p, turns * p, 1), *costs).seconds for name in ("interleaved", "1f1b")
    }
    assert seconds["interleaved"] == pytest.approx(seconds["1f1b"])


@given(st.data(), st.sampled_from(sorted(SCHEDULES)), st.integers(1, 5), st.integers(1, 3))
def test_every_schedule_does_all_the_work_and_never_more_at_once(data, schedule, p, turns):
    # GIVEN any seconds for stages  THEN a pipeline takes at least its busiest rank and at most all work one by one
    grid, p, _ = made(schedule, p, turns * p)
    v = len(grid.stages[0])
    costs = [
        data.draw(st.lists(st.lists(st.floats(0.1, 5), min_size=v, max_size=v), min_size=p, max_size=p)) for _ in "FB"
    ]
    timing = pipeline_seconds(grid, *costs, 0.0)
    assert max(timing.busy) <= timing.seconds + 1e-9
    assert timing.seconds <= math.fsum(timing.busy) + 1e-9
