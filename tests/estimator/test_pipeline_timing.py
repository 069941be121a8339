from __future__ import annotations

import pytest

from dnnmem.estimator.pipeline_timing import pipeline_seconds
from dnnmem.estimator.schedules import SCHEDULES

ONE_F_ONE_B, GPIPE, INTERLEAVED = (SCHEDULES[name] for name in ("1f1b", "gpipe", "interleaved"))


def test_the_slowest_stage_sets_the_pace():
    # GIVEN 3 stages, of which the last has a head  THEN the others' first forwards and last backwards come on top
    timing = pipeline_seconds(ONE_F_ONE_B(3, 5, 1), [[1], [1], [2]], [[2], [2], [4]], 0.0)
    assert timing.seconds == 5 * (2 + 4) + 2 * (1 + 2)
    assert timing.busy == (15, 15, 30)
    assert timing.bubble == (21, 21, 6)


def test_a_single_stage_has_no_bubble_and_sends_nothing():
    timing = pipeline_seconds(ONE_F_ONE_B(1, 4, 1), [[1]], [[2]], 100.0)
    assert (timing.seconds, timing.bubble, timing.in_flight) == (12, (0,), (1,))


def test_sends_lie_on_the_way_there_and_back():
    # GIVEN one micro-batch through 3 stages  THEN it is sent 2 times forward and 2 times back
    timing = pipeline_seconds(GPIPE(3, 1, 1), [[1]] * 3, [[2]] * 3, 0.5)
    assert timing.seconds == 9 + 4 * 0.5


def test_chunks_may_differ():
    # GIVEN a first chunk with an embedding and a last one with a head, one micro-batch a stage
    forward, backward = [[2.0, 1.0], [1.0, 3.0]], [[1.0, 2.0], [2.0, 5.0]]
    timing = pipeline_seconds(INTERLEAVED(2, 2, 2), forward, backward, 0.0)
    assert timing.busy == (12, 22)
    # THEN the second rank waits for the first forward and a second for the next, and the first ends with a backward
    assert timing.seconds == 2 + 1 + 22 + 1


@pytest.mark.parametrize(
    ("schedule", "chunks", "held"),
    [("gpipe", 1, (8, 8, 8, 8)), ("1f1b", 1, (4, 3, 2, 1)), ("interleaved", 2, (11, 9, 7, 5))],
)
def test_what_each_rank_holds(schedule, chunks, held):
    # GIVEN 4 ranks and 8 micro-batches  THEN 1F1B holds p - r, interleaved 2 (p - r - 1) + (v - 1) p + 1 chunks
    costs = [[1.0] * chunks] * 4
    assert pipeline_seconds(SCHEDULES[schedule](4, 8, chunks), costs, costs, 0.0).in_flight == held
