from __future__ import annotations

import time

import pytest

from dnnmem.estimator.timeline import alive_at, timeline
from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace
from tests.strategies import step_trace


def test_the_curve_of_the_step_made_by_hand():
    # GIVEN the step drawn in strategies.py  WHEN its curve is taken
    curve = timeline(step_trace(1))
    # THEN every moment is as drawn
    assert curve.allocated.tolist() == [144, 152, 184, 152, 160, 164, 172, 168, 160, 224, 216, 208, 272, 208, 144]
    assert curve.op.tolist() == [-1, 0, 0, 0, 1, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert curve.peak == 12
    assert curve.kinds[Kind.PARAM].tolist() == [64] * 15
    assert curve.kinds[Kind.TEMP].tolist() == [0, 0, 32, 0, 0, 4, 12, 8, 8, 8, 0, 0, 64, 0, 0]
    assert curve.kinds[Kind.ACTIVATION].tolist() == [0, 8, 8, 8, 16, 16, 16, 16, 8, 8, 8, 0, 0, 0, 0]
    assert set(curve.kinds) == set(Kind)


def test_the_peak_is_the_first_of_equal_ones():
    twice = (Event(5, 0, -1), Event(-5, 0, -1), Event(5, 0, -1), Event(-5, 0, -1))
    assert timeline(Trace(ops=(Op(name="mm", events=twice),), storages={})).peak == 1


def test_a_step_without_events_has_its_start():
    curve = timeline(Trace(ops=(), storages={}))
    assert (curve.allocated.tolist(), curve.op.tolist(), curve.peak) == ([0], [-1], 0)


def test_what_is_alive_at_a_moment():
    trace = step_trace(1)
    assert alive_at(trace, 0) == {0: 64, 1: 64, 2: 16}
    assert alive_at(trace, 2) == {0: 64, 1: 64, 2: 16, 3: 8, -1: 32}
    assert alive_at(trace, 14) == alive_at(trace, 0)


@pytest.mark.parametrize("index", [-1, 15])
def test_a_moment_outside_the_step_is_refused(index):
    with pytest.raises(IndexError, match="entries 0 to 14"):
        alive_at(step_trace(1), index)


def test_a_long_step_is_quick():
    # GIVEN 200,000 events  WHEN the curve is taken
    storages = {i: Storage(id=i, nbytes=i + 1, kind=Kind.ACTIVATION) for i in range(50_000)}
    ops = tuple(
        Op(name="mm", events=(Event(8, 0, -1), Event(i + 1, 0, i), Event(-8, 0, -1), Event(-i - 1, 0, i)))
        for i in storages
    )
    start = time.perf_counter()
    curve = timeline(Trace(ops=ops, storages=storages))
    seconds = time.perf_counter() - start
    # THEN it takes well under a second, and is right
    assert seconds < 1
    assert (len(curve.allocated), curve.allocated.max()) == (200_001, 50_008)
