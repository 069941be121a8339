"""How near predictions are to what was measured: relative errors of a group of rows, and whether their order is right.

    error = predicted / measured - 1         spearman = correlation of the ranks, equal values sharing their mean rank

>>> spearman([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
0.5
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dnnmem.estimator.validation.case import METRICS, Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A row and what became of one of its measurements."""

    case: Case
    """The row."""
    metric: str
    """One of `METRICS`; empty for a row without any measurement that is compared."""
    measured: float | None
    """Seconds or bytes; None if the row holds none."""
    predicted: float | None
    """The same; None if it cannot be predicted."""
    interval: tuple[float, float] | None = None
    """Where nine of ten such values lie; None if that is not known."""
    reason: str = ""
    """Why there is no prediction."""

    @property
    def error(self) -> float | None:
        """Relative error; None without both."""
        if self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A group of rows; errors are relative and without sign, None where nothing is predicted."""

    group: str
    """Source, GPU or strategy."""
    metric: str
    """One of `METRICS`."""
    rows: int
    """Rows that hold the measurement or cannot be predicted at all."""
    predicted: int
    """Of them, those that are predicted."""
    median_abs_error: float | None
    """Of the predicted ones."""
    mean_abs_error: float | None
    """The same."""
    worst_abs_error: float | None
    """The same."""
    spearman: float | None
    """Rank correlation of measured and predicted; None for fewer than three, or all alike."""


def scores(found: Iterable[Prediction], group: Callable[[Case], str]) -> list[Score]:
    """A score for each group and metric, in the order that they come; a metric that no row of a group has is left out.

    A row without any measurement counts among those of every metric of its group.
    """
    groups: dict[str, list[Prediction]] = {}
    for prediction in found:
        groups.setdefault(group(prediction.case), []).append(prediction)
    return [score for name, own in groups.items() for score in _of_group(name, own)]


def _of_group(name: str, own: Sequence[Prediction]) -> list[Score]:
    metrics = [metric for metric in METRICS if any(p.metric == metric for p in own)] or [METRICS[0]]
    return [_score(name, metric, [p for p in own if p.metric in (metric, "")]) for metric in metrics]


def _score(name: str, metric: str, own: Sequence[Prediction]) -> Score:
    pairs = [(p.measured, p.predicted) for p in own if p.measured and p.predicted is not None]
    errors = [abs(predicted / measured - 1) for measured, predicted in pairs]
    return Score(
        group=name,
        metric=metric,
        rows=len(own),
        predicted=len(pairs),
        median_abs_error=statistics.median(errors) if errors else None,
        mean_abs_error=statistics.fmean(errors) if errors else None,
        worst_abs_error=max(errors, default=None),
        spearman=spearman([measured for measured, _ in pairs], [predicted for _, predicted in pairs]),
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; None for fewer than three pairs, or where one side is all alike."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return statistics.correlation(_ranks(a), _ranks(b))


def _ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [statistics.fmean(places[value]) for value in values]
