from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.scale import fit_weights, refit
from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace
from tests.strategies import step_trace


def _square(n: int) -> Trace:
    """An attention of n x n scores, under `seq_len`."""
    scores = Storage(id=0, nbytes=4 * n * n, kind=Kind.ACTIVATION, shape=(n, n), saved=True)
    op = Op(name="bmm", flops=10 * n * n + n, events=(Event(4 * n * n, 0, 0), Event(-4 * n * n, 0, 0)))
    return Trace(ops=(op,), storages={0: scores}, batch={"batch_size": 1, "seq_len": n})


def _edit(trace: Trace, at: int, **changes) -> Trace:
    ops = list(trace.ops)
    ops[at] = replace(ops[at], **changes)
    return replace(trace, ops=tuple(ops))


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (1, 2, 4), (3, 5, 8)])
@pytest.mark.parametrize("n", [1, 7, 1024])
def test_a_linear_step_is_refit_exactly(sizes, n):
    # GIVEN the step made by hand at a few batch sizes  WHEN it is refit to another
    found, residual = refit([step_trace(size) for size in sizes], n)
    # THEN every integer is that of the real step, and seconds are close
    wanted = step_trace(n)
    assert found.storages == wanted.storages
    assert found.setup == wanted.setup
    assert found.batch == {"batch_size": n}
    for a, b in zip(found.ops, wanted.ops, strict=True):
        assert replace(a, seconds=None) == replace(b, seconds=None)
        assert a.seconds == pytest.approx(b.seconds)
    # and so does the fit know: the last trace lies on the line through the others
    assert residual == 0 if len(sizes) > 2 else math.isnan(residual)


def test_a_refit_trace_says_so():
    assert refit([step_trace(2), step_trace(1)], 8)[0].origin.notes[-1] == "Refit to batch_size 8 from steps at 1, 2."


def test_a_square_term_needs_a_parabola():
    # GIVEN attention scores at three lengths
    traces = [_square(n) for n in (2, 4, 6)]
    # WHEN lines are fitted  THEN the last trace is off: (4 + 2 * (16 - 4)) * 4 = 112 of 144 bytes
    _, residual = refit(traces, 10, by="seq_len")
    assert residual == pytest.approx(32 / 144)
    # WHEN parabolas are  THEN all is exact, but no trace is left to tell
    found, unknown = refit(traces, 10, by="seq_len", degree=2)
    assert found.storages == _square(10).storages
    assert found.ops == _square(10).ops
    assert math.isnan(unknown)
    # and a fourth trace tells
    assert refit([*traces, _square(7)], 10, by="seq_len", degree=2)[1] == 0


def test_seconds_are_none_unless_all_traces_have_them():
    found, _ = refit([step_trace(1), step_trace(2, seconds=False)], 4)
    assert {op.seconds for op in found.ops} == {None}


def test_ids_may_differ_between_traces():
    # GIVEN a step whose ids are shifted by 100  WHEN it is fitted with another and held out
    def shifted(n: int) -> Trace:
        t = step_trace(n)
        move = {i: i + 100 for i in t.storages}
        ops = tuple(
            replace(
                op,
                reads=tuple(move[i] for i in op.reads),
                writes=tuple(move[i] for i in op.writes),
                events=tuple(e._replace(storage=move.get(e.storage, e.storage)) for e in op.events),
            )
            for op in t.ops
        )
        storages = {move[i]: replace(s, id=move[i]) for i, s in t.storages.items()}
        return replace(t, ops=ops, storages=storages, pinned=frozenset(move[i] for i in t.pinned), setup=())

    found, residual = refit([shifted(1), shifted(3), step_trace(2)], 8)
    # THEN the last trace's ids hold, and the set-up without a common order is its pinned storages
    assert found.storages == step_trace(8).storages
    assert found.setup == step_trace(8).setup
    assert residual == 0


def test_what_shrinks_to_nothing_has_no_events():
    # GIVEN a storage that grows by 8 from 8 at n = 2  WHEN the step is refit to n = 1
    def growing(n: int) -> Trace:
        storage = Storage(id=0, nbytes=8 * n - 8, kind=Kind.ACTIVATION)
        events = (Event(storage.nbytes, 0, 0), Event(-storage.nbytes, 0, 0))
        return Trace(ops=(Op(name="mm", events=events),), storages={0: storage}, batch={"batch_size": n})

    found, _ = refit([growing(2), growing(3)], 1)
    # THEN it is empty and the trace still valid
    assert found.ops[0].events == ()
    assert found.storages[0].nbytes == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_edit(step_trace(2), 1, name="gelu"), "op 1 is gelu in act (forward) and relu in act (forward)"),
        (_edit(step_trace(2), 1, module=()), "op 1 is relu in the model (forward) and relu in act (forward)"),
        (_edit(step_trace(2), 0, events=(Event(16, 0, 3),)), "op 0, mm in fc (forward), does not allocate"),
        (_edit(step_trace(2), 1, reads=(3, 2)), "op 1, relu in act (forward), does not allocate, free and read"),
        (_edit(step_trace(2), 1, reads=(2,)), "op 1, relu in act (forward), does not allocate, free and read"),
        (replace(step_trace(2), ops=step_trace(2).ops[:4]), "one goes on after 4 ops, with mm"),
    ],
    ids=["name", "module", "events", "more-reads", "other-reads", "length"],
)
def test_steps_that_differ_in_more_than_sizes_are_refused(other, message):
    with pytest.raises(UnsupportedError, match="at batch_size") as caught:
        refit([step_trace(1), other], 4)
    assert message in caught.value.message


def test_steps_that_start_differently_are_refused():
    fewer = step_trace(2)
    fewer = replace(fewer, pinned=fewer.pinned - {1})
    with pytest.raises(UnsupportedError, match="start with 2 and 3 storages"):
        refit([step_trace(1), fewer], 4)


@pytest.mark.parametrize(
    ("traces", "n", "options", "message"),
    [
        ([step_trace(1)], 4, {}, "batch_size is 1 in the traces to fit; a fit of degree 1 needs at least 2"),
        ([step_trace(1), step_trace(1)], 4, {}, "batch_size is 1, 1 in the traces"),
        ([step_trace(1), step_trace(2)], 4, {"degree": 2}, "a fit of degree 2 needs at least 3"),
        ([step_trace(1), step_trace(2)], 0, {}, "batch_size is 0; it must be 1 or more"),
        ([step_trace(1), step_trace(2)], 4, {"by": "seq_len"}, "a trace to fit has seq_len None"),
        ([], 4, {}, "batch_size is nowhere in the traces"),
    ],
    ids=["one", "equal", "parabola", "zero", "missing", "none"],
)
def test_sizes_that_cannot_be_fitted_are_refused(traces, n, options, message):
    with pytest.raises(UsageError) as caught:
        refit(traces, n, **options)
    assert message in caught.value.message


@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=4, unique=True),
    st.integers(1, 10**6),
    st.integers(-(10**12), 10**12),
    st.integers(-(10**12), 10**12),
)
def test_weights_sum_to_one_and_reproduce_any_line(sizes, n, a, b):
    weights = fit_weights(sizes, n, degree=1)
    assert sum(weights) == 1
    assert sum(w * (a + b * size) for w, size in zip(weights, sizes, strict=True)) == a + b * n


def test_weights_of_three_sizes_are_least_squares():
    # GIVEN values 0, 0, 6 at 1, 2, 3: the best line is -4 + 3 n  WHEN it is read at 5
    weights = fit_weights([1, 2, 3], 5, degree=1)
    assert sum(w * y for w, y in zip(weights, (0, 0, 6), strict=True)) == Fraction(11)
