from __future__ import annotations

import numpy as np
import pytest

from dnnmem.estimator.errors import TraceError
from dnnmem.estimator.simulate import CAUSES, HOST, simulate
from dnnmem.estimator.trace import Event, Lane, Op

MM, COMM, OUT, IN = Lane.COMPUTE, Lane.COMM, Lane.TO_HOST, Lane.TO_DEVICE


def _op(lane: Lane, reads: tuple[int, ...] = (), writes: tuple[int, ...] = ()) -> Op:
    return Op(name=f"op.{lane.value}", lane=lane, reads=reads, writes=writes)


def _run(*ops: tuple[Op, float], host: float = 0.0):
    return simulate([op for op, _ in ops], [seconds for _, seconds in ops], [host] * len(ops))


def test_ops_of_one_lane_follow_each_other():
    timing = _run((_op(MM), 1.0), (_op(MM), 2.0), (_op(MM), 3.0))
    assert timing.start.tolist() == [0, 1, 3]
    assert (timing.seconds, timing.busy[MM], sum(timing.exposed.values())) == (6, 6, 0)


def test_a_prefetch_overlaps_and_what_reads_it_waits():
    # GIVEN  comm     |  gather 1  |
    #        compute  | mm |.......| mm, which reads 1 |
    timing = _run((_op(COMM, writes=(1,)), 5.0), (_op(MM), 2.0), (_op(MM, reads=(1,)), 1.0))
    assert timing.start.tolist() == [0, 0, 5]
    assert (timing.seconds, timing.exposed["comm"], timing.exposed[HOST]) == (6, 3, 0)


def test_compute_beside_a_collective_is_slower():
    # GIVEN  comm     |  sum  |
    #        compute  |   mm    |  mm  |            WHEN a second of it takes half a second longer beside the sum
    ops = [_op(COMM, writes=(1,)), _op(MM), _op(MM)]
    timing = simulate(ops, [3.0, 3.0, 1.0], [0.0] * 3, contention=0.5)
    assert timing.end.tolist() == [3, 4, 5]
    assert (timing.busy[MM], timing.exposed["comm"]) == (4, 1)


def test_an_op_in_parts_is_slowed_as_the_whole():
    # GIVEN two collectives on axes of their own, one within the other, beside an op, or the same in hundredths
    sums = [_op(COMM, writes=(1,)), Op(name="op.tp", lane=COMM, writes=(2,))]
    whole = simulate([*sums, _op(MM)], [5.0, 2.0, 8.0], [0.0] * 3, contention=0.25)
    parts = simulate([*sums, *[_op(MM)] * 100], [5.0, 2.0] + [0.08] * 100, [0.0] * 102, contention=0.25)
    # THEN four seconds of it take five, and four run alone
    assert whole.seconds == pytest.approx(9)
    assert parts.seconds == pytest.approx(9)


def test_what_compute_waits_for_does_not_slow_it():
    ops = [_op(COMM, writes=(1,)), _op(MM, reads=(1,)), _op(OUT), _op(MM)]
    assert simulate(ops, [2.0, 1.0, 9.0, 1.0], [0.0] * 4, contention=0.5).end.tolist() == [2, 3, 12, 4]


def test_a_side_lane_begins_at_its_place_in_the_program():
    # GIVEN a gather issued behind an op that it has nothing to do with  THEN it does not begin at 0
    timing = _run((_op(MM), 2.0), (_op(COMM, writes=(1,)), 1.0), (_op(MM), 5.0))
    assert timing.start.tolist() == [0, 2, 2]


def test_side_lanes_do_not_wait_for_each_other():
    timing = _run((_op(COMM, writes=(1,)), 4.0), (_op(OUT, reads=(2,)), 3.0), (_op(IN, writes=(3,)), 2.0))
    assert timing.start.tolist() == [0, 0, 0]
    assert (timing.busy[COMM], timing.busy[OUT], timing.busy[IN]) == (4, 3, 2)


def test_what_is_read_is_not_overwritten_before():
    # GIVEN a copy to the host that reads 1 while compute goes on  THEN only the op that writes 1 again waits
    timing = _run((_op(MM, writes=(1,)), 1.0), (_op(OUT, reads=(1,)), 6.0), (_op(MM), 1.0), (_op(MM, writes=(1,)), 1.0))
    assert timing.start.tolist() == [0, 1, 1, 7]
    assert timing.exposed["to_host"] == 5


def test_a_slow_host_starves_the_gpu():
    # GIVEN an op of 1 s that takes the host 3 s to issue
    timing = _run((_op(MM), 1.0), (_op(MM), 1.0), host=3.0)
    assert timing.start.tolist() == [3, 6]
    assert (timing.seconds, timing.host_seconds, timing.exposed[HOST]) == (7, 6, 5)


def test_a_host_that_runs_ahead_costs_only_the_first_op():
    timing = _run((_op(MM), 5.0), (_op(MM), 5.0), host=1.0)
    assert timing.start.tolist() == [1, 6]
    assert timing.exposed[HOST] == 1


def test_where_host_and_lane_both_keep_waiting_the_lane_is_charged():
    # GIVEN comm until 5 and the host until 2  WHEN compute, free at 0, reads what comm wrote
    timing = simulate([_op(COMM, writes=(1,)), _op(MM, reads=(1,))], [4.0, 1.0], [1.0, 1.0])
    assert timing.start.tolist() == [1, 5]
    assert (timing.exposed["comm"], timing.exposed[HOST]) == (5, 0)


def test_the_end_of_the_step_waits_for_every_lane():
    timing = _run((_op(MM, writes=(1,)), 1.0), (_op(COMM, reads=(1,)), 3.0))
    assert (timing.seconds, timing.exposed["comm"]) == (4, 3)


@pytest.mark.parametrize(
    ("compute", "comm", "host", "bound"), [(3.0, 1.0, 0.1, "compute"), (1.0, 3.0, 0.1, "comm"), (1.0, 1.0, 2.0, HOST)]
)
def test_what_works_longest_bounds_the_step(compute, comm, host, bound):
    assert _run((_op(MM), compute), (_op(COMM), comm), host=host).bound == bound


def test_what_is_freed_is_first_on_the_host():
    # GIVEN an op that frees what a copy engine still reads  THEN compute goes on when the copy is there
    free = Op(name="op.frees", events=(Event(-8, 0, 1),))
    timing = _run((_op(MM, writes=(1,)), 1.0), (_op(OUT, reads=(1,)), 5.0), (free, 2.0), (_op(MM), 1.0))
    assert timing.start.tolist() == [0, 1, 1, 6]
    assert (timing.seconds, timing.exposed["to_host"]) == (7, 3)


def test_no_op_takes_no_time():
    timing = simulate([], [], [])
    assert (timing.seconds, timing.start.size, set(timing.exposed)) == (0, 0, set(CAUSES))


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        ([1.0], r"2 ops have 1 times; each op has one"),
        ([1.0, float("nan")], r"op 1 \(op\.comm\) takes nan seconds"),
        ([-1.0, 1.0], r"op 0 \(op\.compute\) takes -1\.0 seconds; a time is finite and not negative"),
    ],
)
def test_times_that_are_none_are_refused(seconds, message):
    with pytest.raises(TraceError, match=message):
        simulate([_op(MM), _op(COMM)], np.array(seconds), [0.0, 0.0])
