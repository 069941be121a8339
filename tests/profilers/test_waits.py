"""What waits over the end of a step is what waited over its beginning, so that the step can follow itself."""

from __future__ import annotations

import pytest

from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace
from dnnmem.profilers.waits import close_waits

MIB = 2**20


def run(steps, lag):
    """Events of each step: step i allocates and frees block i, which serves again `lag` steps on."""
    found = []
    for i in range(steps):
        over = [Event(0, 0, i - lag)] if i >= lag else []
        found.append([Event(13 * MIB, 0, i), *over, Event(-13 * MIB, 0, i)])
    return found


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_a_step_goes_on_as_it_went_before(lag):
    # GIVEN a program whose blocks wait for one to three steps
    bare = replay_of([e for step in run(20, lag) for e in step], [])
    # WHEN its sixth step is closed and follows itself
    steps = run(6, lag)
    waiting = [i for i in range(6) if i + lag >= 6]
    windows = [steps[5]]
    setup = close_waits(tuple(e for step in steps[:5] for e in step), windows, waiting)
    # THEN it reserves what the program does, however long it runs: a block, and one more for each step that it waits
    assert replay_of(setup, windows[0]) == bare == replay_of(setup, windows[0], 20) == (1 + lag) * 14 * MIB


def replay_of(setup, step, repeated=2):
    storages = {
        e.storage: Storage(id=e.storage, nbytes=e.nbytes, kind=Kind.TEMP) for e in (*setup, *step) if e.nbytes > 0
    }
    trace = Trace(ops=(Op(name="all", events=tuple(step)),), storages=storages, setup=tuple(setup))
    return replay_trace(trace, steps=repeated).reserved_bytes


def test_what_has_no_counterpart_serves_again_at_the_end():
    # GIVEN a step that frees two blocks late, after a set-up that freed one of another size late
    windows = [[Event(0, 0, 7), Event(64, 0, 1), Event(32, 0, 2), Event(-64, 0, 1), Event(-32, 0, 2)]]
    setup = (Event(16, 0, 7), Event(-16, 0, 7))
    # WHEN it is closed
    closed = close_waits(setup, windows, [1, 2])
    # THEN the set-up is as it was, and both come free when the step ends
    assert closed == setup
    assert windows[0][5:] == [Event(0, 0, 1), Event(0, 0, 2)]


def test_a_step_without_waits_stays_as_it_is():
    windows = [[Event(64, 0, 1), Event(-64, 0, 1)]]
    assert close_waits((Event(8, 0, 0),), windows, []) == (Event(8, 0, 0),)
    assert windows == [[Event(64, 0, 1), Event(-64, 0, 1)]]
