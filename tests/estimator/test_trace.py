from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from dnnmem.estimator.errors import TraceError
from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace
from tests.strategies import step_trace

W = Storage(id=0, nbytes=8, kind=Kind.PARAM)
X = Storage(id=1, nbytes=4, kind=Kind.TEMP)
EMPTY = Storage(id=2, nbytes=0, kind=Kind.ACTIVATION)


def _trace(*ops: Op, pinned: frozenset[int] = frozenset({0})) -> Trace:
    return Trace(ops=ops, storages={0: W, 1: X, 2: EMPTY}, pinned=pinned)


def _op(*events: tuple[int, int], reads: tuple[int, ...] = (), writes: tuple[int, ...] = ()) -> Op:
    return Op(name="mm", reads=reads, writes=writes, events=tuple(Event(nbytes, 0, i) for nbytes, i in events))


@pytest.mark.parametrize("n", [1, 8])
def test_the_step_made_by_hand_is_valid(n):
    step_trace(n).check()


def test_the_peak_is_the_largest_sum_of_live_bytes():
    assert [step_trace(n).peak_bytes() for n in (1, 8)] == [272, 452]
    assert _trace().peak_bytes() == _trace().pinned_bytes() == 8


def test_frees_leave_temporaries_out():
    assert _op((4, 1), (16, -1), (-16, -1), (-4, 1)).frees == (1,)


def test_events_come_with_the_index_of_their_op():
    trace = _trace(_op((4, 1)), _op(), _op((-4, 1)))
    assert list(trace.events()) == [(0, Event(4, 0, 1)), (2, Event(-4, 0, 1))]


@pytest.mark.parametrize(
    "op",
    [
        _op((-8, 0), (8, 0)),  # a pinned block may be freed and made again
        _op((16, -1), (4, 1), (-16, -1), (-4, 1), writes=(1,)),  # made, written and freed by one op
        _op(reads=(2,), writes=(2,)),  # what has no bytes has no block
        _op((4, -1), (-4, -1), (6, -1), (-6, -1)),  # a temporary's id may serve again
    ],
)
def test_these_are_valid(op):
    _trace(op).check()


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([_op(reads=(1,))], "op 0 (mm) reads storage 1, which is not alive"),
        ([_op(reads=(9,))], "op 0 (mm) reads storage 9, which is not alive"),
        ([_op(writes=(1,))], "op 0 (mm) writes storages [1], which are not alive"),
        ([_op((4, 1), (4, 1))], "op 0 (mm) allocates storage 1, which is already alive"),
        ([_op((8, 0))], "op 0 (mm) allocates storage 0, which is already alive"),
        ([_op((5, 1))], "op 0 (mm) allocates 5 bytes for storage 1, which the trace does not list so"),
        ([_op((5, 9))], "op 0 (mm) allocates 5 bytes for storage 9, which the trace does not list so"),
        ([_op(), _op((-4, 1))], "op 1 (mm) frees 4 bytes of storage 1, which is not alive with that size"),
        ([_op((4, 1), (-3, 1))], "op 0 (mm) frees 3 bytes of storage 1, which is not alive with that size"),
        ([_op((0, 9))], "op 0 (mm) ends a wait for storage 9, which the trace does not list"),
        ([_op((6, -1)), _op((-6, -1))], "op 0 (mm) leaves 6 bytes of its temporaries alive"),
        ([_op((4, 1))], "after the last op, storages [1] live"),
        ([_op((-8, 0))], "pinned storages [0] do not"),
    ],
)
def test_a_broken_step_is_refused_by_op_and_storage(ops, message):
    with pytest.raises(TraceError) as caught:
        _trace(*ops).check()
    assert message in caught.value.message


def test_pinned_storages_are_listed():
    with pytest.raises(TraceError, match=r"pinned storages \[7\] are not among the 3"):
        _trace(pinned=frozenset({0, 7})).check()


@pytest.mark.parametrize("storage", [replace(W, id=5), replace(W, nbytes=-1)])
def test_ids_and_sizes_of_storages_are_sound(storage):
    with pytest.raises(TraceError, match="storage 0 has id"):
        Trace(ops=(), storages={0: storage}).check()


def test_a_trace_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        step_trace().ops = ()
