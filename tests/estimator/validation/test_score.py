"""Errors of groups of rows: what cannot be predicted counts, and does not change the errors of what can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.validation.case import Case
from dnnmem.estimator.validation.score import Prediction, scores, spearman

NUMBERS = st.floats(1e-3, 1e3)


def made(metric, measured, predicted, source="a"):
    return Prediction(case=Case(source=source), metric=metric, measured=measured, predicted=predicted)


def test_errors_are_relative_and_without_sign():
    # GIVEN predictions 10 % above, 20 % below and right on
    found = [made("step_seconds", 1.0, 1.1), made("step_seconds", 2.0, 1.6), made("step_seconds", 4.0, 4.0)]
    score = scores(found, lambda case: case.source)[0]
    assert (score.rows, score.predicted, score.spearman) == (3, 3, pytest.approx(1.0))
    assert score.median_abs_error == pytest.approx(0.1)
    assert score.mean_abs_error == pytest.approx(0.1)
    assert score.worst_abs_error == pytest.approx(0.2)


def test_a_row_without_a_measurement_counts_in_every_metric_of_its_source():
    found = [made("step_seconds", 1.0, 1.0), made("peak_reserved_bytes", 8, None), made("", None, None)]
    found += [made("", None, None, "b")]
    rows = {(s.group, s.metric): (s.rows, s.predicted, s.median_abs_error) for s in scores(found, lambda c: c.source)}
    assert rows == {
        ("a", "step_seconds"): (2, 1, 0.0),
        ("a", "peak_reserved_bytes"): (2, 0, None),
        ("b", "step_seconds"): (1, 0, None),
    }


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=20))
def test_ranks_are_the_same_after_any_growing_change(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    found = spearman(a, b)
    if found is None:
        assert len(set(a)) == 1 or len(set(b)) == 1
    else:
        assert spearman([x * 8 for x in a], [y / 4 for y in b]) == pytest.approx(found)
        assert spearman(a, a) == pytest.approx(1)
        assert spearman(a, [-x for x in a]) == pytest.approx(-1)
        assert -1.000001 <= found <= 1.000001
