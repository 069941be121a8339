"""Stage balance: the exact answer is that of trying all cuts, for any speeds, rooms and places in a schedule."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import InfeasibleError, UsageError
from dnnmem.estimator.passes.pipeline import split
from dnnmem.estimator.pipeline_timing import pipeline_seconds
from dnnmem.estimator.plan import Batch, Mesh, Pipeline, Plan
from dnnmem.estimator.planners.stage_units import balanced, chain_units, slots_of
from dnnmem.estimator.planners.stages import Slot, Unit, best_cuts
from dnnmem.estimator.schedules import SCHEDULES
from tests.estimator.passes.steps import gpt

SMALL = st.integers(0, 9)
UNITS = st.builds(
    Unit, seconds=st.integers(1, 9).map(float), resting_bytes=SMALL, weight_bytes=SMALL, held_bytes=SMALL,
    working_bytes=SMALL,
)  # fmt: skip
SLOTS = st.builds(
    Slot, speed=st.sampled_from([0.5, 1.0, 2.0]), room_bytes=st.none() | st.integers(0, 90),
    in_flight=st.integers(1, 4), versions=st.integers(1, 3),
)  # fmt: skip


def tried(units, slots, microbatches, flushes):
    """The least seconds of all cuts that fit; None if none does."""
    found = []
    for firsts in combinations(range(1, len(units)), len(slots) - 1):
        runs = [units[i:j] for i, j in pairwise((0, *firsts, len(units)))]
        fits = all(
            slot.room_bytes is None
            or sum(u.resting_bytes + (slot.versions - 1) * u.weight_bytes + slot.in_flight * u.held_bytes for u in run)
            + max(u.working_bytes for u in run)
            <= slot.room_bytes
            for run, slot in zip(runs, slots, strict=True)
        )
        if fits:
            times = [sum(u.seconds for u in run) / slot.speed for run, slot in zip(runs, slots, strict=True)]
            found.append(sum(times) + (microbatches - 1) * max(times) if flushes else microbatches * max(times))
    return min(found, default=None)


@given(
    st.lists(UNITS, min_size=1, max_size=8), st.lists(SLOTS, min_size=1, max_size=4), st.integers(1, 9), st.booleans()
)
def test_it_finds_what_trying_all_cuts_does(units, slots, microbatches, flushes):
    slots = slots[: len(units)]
    best = tried(units, slots, microbatches, flushes)
    if best is None:
        with pytest.raises(InfeasibleError):
            best_cuts(units, slots, microbatches, flushes=flushes)
        return
    found = best_cuts(units, slots, microbatches, flushes=flushes)
    assert found.seconds == pytest.approx(best)
    assert len(found.firsts) == len(slots) - 1


@given(st.lists(UNITS, min_size=4, max_size=8), st.integers(2, 4), st.integers(1, 4))
def test_what_it_says_is_needed_is_the_least_that_fits(units, count, held):
    slots = [Slot(room_bytes=-1, in_flight=held)] * count
    with pytest.raises(InfeasibleError) as refused:
        best_cuts(units, slots, 4)
    needed = refused.value.needed_bytes
    best_cuts(units, [Slot(room_bytes=needed, in_flight=held)] * count, 4)
    if needed:
        with pytest.raises(InfeasibleError):
            best_cuts(units, [Slot(room_bytes=needed - 1, in_flight=held)] * count, 4)


@given(st.lists(UNITS, min_size=3, max_size=8), st.integers(1, 3), st.integers(1, 8))
def test_its_seconds_are_those_of_the_schedule(units, count, microbatches):
    # GIVEN cuts  WHEN GPipe runs them, forwards a third of it  THEN it takes as long as is said
    found = best_cuts(units, [Slot()] * count, microbatches)
    forward = [[t / 3] for t in found.stage_seconds]
    backward = [[2 * t / 3] for t in found.stage_seconds]
    grid = SCHEDULES["gpipe"](count, microbatches, 1)
    assert pipeline_seconds(grid, forward, backward).seconds <= found.seconds + 1e-9


def test_a_slow_gpu_gets_fewer_blocks():
    units = [Unit(seconds=1.0)] * 9
    assert best_cuts(units, [Slot(speed=2.0), Slot()], 8).firsts == (6,)
    # AND one with little room no more than fit
    assert best_cuts([Unit(seconds=1.0, held_bytes=1)] * 9, [Slot(room_bytes=2), Slot()], 8).firsts == (2,)


def test_embeddings_and_head_are_work_of_their_stages():
    # GIVEN a GPT of six blocks and a large vocabulary
    trace = gpt(6, vocab=4000)
    units = chain_units(trace, lambda chunk: sum(op.flops for op in chunk.ops) / 1e9)
    assert len(units) == 6
    assert units[-1].seconds > units[1].seconds
    assert units[0].resting_bytes > units[1].resting_bytes == units[2].resting_bytes
    # THEN the last stage has fewer blocks
    cut = best_cuts(units, slots_of(Plan(mesh=Mesh(pp=2)), [None, None]), 8)
    assert cut.firsts[0] > 3
    assert cut.text == str(cut.firsts[0])
    # AND a plan has them, and is split so
    plan = balanced(trace, Plan(mesh=Mesh(pp=2), batch=Batch(accumulation=8)), find_cluster("h100-sxm-80gb:2"))
    assert int(plan.pipeline.cuts) >= 3
    first, last = split(trace, plan)
    assert {op.module[1] for op in last.ops if op.module[:1] == ("blocks",)} == {
        str(i) for i in range(int(plan.pipeline.cuts), 6)
    }
    first.check()


def test_places_follow_the_schedule():
    slots = slots_of(
        Plan(mesh=Mesh(pp=3), pipeline=Pipeline(schedule="pipedream")), [10, 20, 30], speeds=[1.0, 1.0, 2.0]
    )
    assert [(s.room_bytes, s.in_flight, s.versions, s.speed) for s in slots] == [
        (10, 1, 1, 1.0),
        (20, 1, 1, 1.0),
        (30, 1, 1, 2.0),
    ]


def test_fewer_blocks_than_stages_are_refused():
    with pytest.raises(UsageError, match="2 blocks make no 3 stages"):
        best_cuts([Unit(seconds=1.0)] * 2, [Slot()] * 3, 4)
