"""What holds for every schedule: work is done once, in order; bubbles, what is held and versions are the papers'."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.pipeline_timing import in_flight, pipeline_seconds
from dnnmem.estimator.plan_pipeline import PIPELINES
from dnnmem.estimator.schedules import ALTERS, SCHEDULES
from dnnmem.estimator.schedules.grid import starts, ticks
from tests.estimator.schedules.grids import made

NAMES = sorted(SCHEDULES)
FLUSHING = ("1f1b", "dapple", "gpipe", "terapipe")
SECONDS = st.integers(1, 9).map(float)


def costs(grid, **by_phase):
    return {phase: [[seconds] * len(row) for row in grid.stages] for phase, seconds in by_phase.items()}


def timed(grid, f, b, w=None):
    rows = costs(grid, F=f, B=b, W=w)
    return pipeline_seconds(grid, rows["F"], rows["B"], 0.0, None if w is None else rows["W"])


@given(st.sampled_from(NAMES), st.integers(1, 8), st.integers(1, 20), st.integers(2, 3))
def test_every_micro_batch_passes_every_stage_once(name, p, m, v):
    grid, p, m = made(name, p, m, v)
    done = {phase: Counter() for phase in "FBIWR"}
    for row, stages in zip(grid.ranks, grid.stages, strict=True):
        for step in row:
            done[step.phase][step.microbatch, stages[step.chunk]] += 1
    # GIVEN the stages of a model  THEN each sees every micro-batch, forward and back, once
    every = {(i, s): 1 for i in range(m) for s in range(1 + max(map(max, grid.stages)))}
    assert done["F"] == done["B"] + done["I"] == every
    # AND what is split is done whole; what is run again was run, and has its backward next
    assert done["I"] == done["W"]
    assert done["R"].keys() <= done["F"].keys()
    for row in grid.ranks:
        for step, after in pairwise(row):
            assert step.phase != "R" or after == step._replace(phase="B")


@given(st.sampled_from(NAMES), st.integers(1, 6), st.integers(1, 12), st.tuples(SECONDS, SECONDS, SECONDS))
def test_no_step_begins_before_what_it_needs(name, p, m, seconds):
    grid, p, m = made(name, p, m)
    f, i, w = seconds
    price = costs(grid, F=f, I=i, W=w, B=i + w, R=f)
    # WHEN it runs with any seconds  THEN each step follows its rank's last, its stage's own, and its neighbour's
    began, begins, ends = starts(grid, price), {}, {}
    for r, row in enumerate(grid.ranks):
        before = 0.0
        for n, step in enumerate(row):
            assert began[r][n] >= before
            before = began[r][n] + price[step.phase][r][step.chunk]
            begins[step.phase, step.microbatch, grid.stages[r][step.chunk]] = began[r][n]
            ends[step.phase, step.microbatch, grid.stages[r][step.chunk]] = before
    last = max(map(max, grid.stages))
    for (phase, mb, s), at in begins.items():
        needs = {
            "F": [("F", mb, s - 1)] if s else [],
            "R": [("F", mb, s)],
            "W": [("I", mb, s)],
        }.get(phase, [("F", mb, s), *(("BI"[("I", mb, s + 1) in ends], mb, s + 1),) * (s < last)])
        assert all(ends[need] <= at for need in needs)


@given(st.sampled_from(NAMES), st.integers(1, 8), st.integers(1, 20))
def test_replicas_and_versions(name, p, m):
    grid, p, m = made(name, p, m)
    assert grid.replicas == (2 if name in {"chimera", "gems", "dualpipe"} else 1)
    # GIVEN rank k  THEN PipeDream stashes K - k versions, 2BW two, PipeMare one and an average, the others one
    stashed = tuple(min(p - k, m) for k in range(p))
    copies = {"pipedream": stashed, "hetpipe": stashed, "2bw": (2,) * p, "pipemare": (2,) * p}.get(name, (1,) * p)
    assert tuple(1 + grid.extra_copies(k) for k in range(p)) == copies
    assert grid.flushes == (name not in ALTERS)


def held(name, k, p, m):
    """Micro-batches, or chunks of them, that rank k of p holds at most; as 1F1B where nothing else is said."""
    here = {
        "gpipe": m, "terapipe": m, "gems": 1, "zb_h1": min(p, m), "dualpipe": p + 1, "dualpipev": 2 * p + 1,
        "chimera": min(p - k, p // 2) + min(k + 1, p // 2),
    }  # fmt: skip
    return here.get(name, min(p - k, m))


@given(st.sampled_from(sorted(set(NAMES) - {"interleaved", "zbv", "varuna"})), st.integers(1, 8), st.integers(1, 20))
def test_micro_batches_in_flight(name, p, m):
    grid, p, m = made(name, p, m)
    assert tuple(map(in_flight, grid.ranks)) == tuple(held(name, k, p, m) for k in range(p))


@given(st.integers(1, 8), st.integers(1, 20), st.integers(2, 4))
def test_chunks_in_flight(p, m, v):
    # GIVEN v chunks a rank  THEN rank 0 holds those of K (1 + (K - 1) / (K v)) micro-batches
    grid, p, m = made("interleaved", p, m, v)
    if m > p:
        chunks = tuple(min(m * v, 2 * (p - k - 1) + (v - 1) * p + 1) for k in range(p))
        assert tuple(map(in_flight, grid.ranks)) == chunks
        assert chunks[0] == min(m * v, p * v + p - 1)
    # AND ZB-V no rank more than the first of 1F1B, Varuna no more than all
    assert max(map(in_flight, SCHEDULES["zbv"](p, m, 2).ranks)) <= 2 * min(p, m)
    assert max(map(in_flight, SCHEDULES["varuna"](p, m, 1).ranks)) <= m


@given(st.sampled_from(FLUSHING), st.integers(1, 8), st.integers(1, 16), SECONDS, SECONDS)
def test_the_bubble_of_those_that_fill_and_drain(name, p, m, f, b):
    found = timed(SCHEDULES[name](p, m, 1), f, b)
    assert [wait / found.seconds for wait in found.bubble] == pytest.approx([(p - 1) / (m + p - 1)] * p)


@given(st.integers(2, 6), st.integers(1, 4), st.integers(2, 4))
def test_the_bubble_of_interleaved_is_v_times_smaller(p, turns, v):
    m = turns * p
    found = timed(SCHEDULES["interleaved"](p, m, v), 1.0, 2.0)
    assert [wait / found.busy[0] for wait in found.bubble] == pytest.approx([(p - 1) / (v * m)] * p)


@given(st.sampled_from(sorted(ALTERS)), st.integers(1, 8), st.integers(1, 16), SECONDS, SECONDS)
def test_what_never_flushes_has_no_bubble(name, p, m, f, b):
    grid, p, m = made(name, p, m)
    assert timed(grid, f, b).bubble == (0.0,) * p


@given(st.integers(1, 8), st.integers(0, 12), SECONDS, SECONDS, SECONDS)
def test_the_bubble_of_zb_h1(p, more, f, i, w):
    # GIVEN a micro-batch a stage or more, and weights that take least  THEN (p - 1) (f + i - w)
    w = min(w, f, i)
    found = timed(SCHEDULES["zb_h1"](p, p + more, 1), f, i + w, w)
    assert found.bubble[0] == pytest.approx((p - 1) * (f + i - w))


@given(st.integers(1, 6), st.integers(0, 6), SECONDS)
def test_no_rank_of_zbv_waits_between_its_first_step_and_its_last(p, more, f):
    grid = SCHEDULES["zbv"](p, 2 * p + more, 2)
    price = costs(grid, F=f, I=f, W=f)
    for row, began in zip(grid.ranks, starts(grid, price), strict=True):
        assert began[-1] - began[0] == pytest.approx(f * (len(row) - 1))


@given(st.integers(1, 4), st.integers(0, 6), SECONDS, SECONDS, SECONDS)
def test_the_bubble_of_dualpipe(half, more, f, i, w):
    # GIVEN forwards, then weights, that take less than inputs  THEN (p / 2 - 1) (f + b + b - 3 w)
    p, (w, f, i) = 2 * half, sorted((f, i, w))
    m = 2 * p + 2 * more
    found = timed(SCHEDULES["dualpipe"](p, m, 1), f, i + w, w)
    assert found.seconds - m * (f + i + w) == pytest.approx((p / 2 - 1) * (f + 2 * (i + w) - 3 * w))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 3))
def test_the_bubble_of_chimera(half, units):
    # GIVEN forwards as long as backwards  THEN (K - 2) / (2 m + K - 2)
    p = 2 * half
    m = units * p
    found = timed(SCHEDULES["chimera"](p, m, 1), 1.0, 1.0)
    assert [wait / found.seconds for wait in found.bubble] == pytest.approx([(p - 2) / (2 * m + p - 2)] * p)


@given(st.integers(1, 8), st.integers(1, 20))
def test_the_bubble_of_gems_tends_to_the_papers(p, m):
    # GIVEN backwards of two forwards  THEN a micro-batch follows the last one's backward, a forward behind it
    found = timed(SCHEDULES["gems"](p, m, 1), 1.0, 2.0)
    assert found.seconds == pytest.approx(m * (2 * p + 1) + p - 1)
    share = 1 - 3 * m / (m * (2 * p + 1))
    assert share == pytest.approx((p - 1) / (p + 0.5))


@given(st.integers(1, 8), st.integers(1, 16))
def test_varuna_waits_no_longer_than_gpipe_that_runs_forwards_again(p, m):
    varuna, gpipe = (timed(SCHEDULES[name](p, m, 1), 1.0, 3.0) for name in ("varuna", "gpipe"))
    assert varuna.seconds <= gpipe.seconds
    assert varuna.seconds >= m * 4.0 * (p > 1)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("gpipe", (2, 4, 2), r"gpipe has 1 chunk a rank, not 2"),
        ("zbv", (2, 4, 1), r"zbv has 2 chunks a rank, not 1"),
        ("interleaved", (4, 6, 2), r"interleaved runs 4 stages on 6 micro-batches; they must be a multiple"),
        ("chimera", (3, 6, 1), r"chimera needs an even number of stages, not 3"),
        ("dualpipe", (4, 6, 1), r"dualpipe needs 8 micro-batches or more, not 6"),
        ("2bw", (4, 2, 1), r"2bw needs 4 micro-batches or more, not 2"),
    ],
)
def test_what_a_schedule_cannot_do_is_refused(name, sizes, message):
    with pytest.raises(UsageError, match=message):
        SCHEDULES[name](*sizes)


def test_a_pair_hands_on_when_both_steps_are_done():
    grid, _, _ = made("dualpipe", 4, 8)
    together = starts(grid, ticks(grid))
    assert together != starts(type(grid)(ranks=grid.ranks, stages=grid.stages), ticks(grid))


def test_every_schedule_has_a_name_in_plans():
    assert tuple(SCHEDULES) == PIPELINES
