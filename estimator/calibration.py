"""A site's own rates from a few of its own steps: the most likely parameters, given what was measured and the priors.

    minimise   sum over steps       tail ln(1 + e^2 / tail)     e = (ln measured - ln predicted) / noise
             + sum over parameters  (ln p - ln p0)^2 / spread^2

Each parameter begins at the packaged value with the spread of its kind of work, so one step moves the parameters that
it depends on, each as far as it is unsure, and no other. Small errors count by their squares; among three steps or
more, one that no likely rates explain beside the others is an odd one (Student's distribution, not the normal one)
and is left alone. With fewer there is no telling: the tail is infinite, which leaves squares.
Gauss-Newton on logarithms, weighted anew each round; the inverse of the last normal matrix says how sure the
parameters are afterwards, and narrows the interval of a prediction.

>>> [parameter for parameter, kind in PARAMETERS.items() if kind == "host"]
['host_seconds', 'iteration_seconds', 'host_backward']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.local_step import LocalStep
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import TimeModel

_ARITHMETIC = ("gemm", "attention", "conv")
_KINDS = {
    "nvlink": "communication",
    "pcie": "communication",
    "network": "communication",
    "contention": "communication",
    "host": "host",
    "iteration": "host",
}
_HOST, _SLOWER = "host_seconds", 2.0
"""A host that bounds no step at its packaged cost has no slope there, so the search begins again so many spreads up."""
_FIXED = (
    "traced_layer",
    "power_exponent",
    "reference_watts",
    "reference_flops_per_s",
    "l2_boost",
    "cudnn_attention",
    "spread",
    "curves",
)


def _kind(name: str) -> str:
    if any(word in name for word in _ARITHMETIC):
        return "arithmetic"
    return _KINDS.get(name.partition("_")[0], "traffic")


PARAMETERS: Mapping[str, str] = {f.name: _kind(f.name) for f in fields(TimeModel) if f.name not in _FIXED}
"""What is fitted, and whose spread is its prior's. One that is 0 stays 0."""
_NOISE = "step"
"""Name in `TimeModel.spread` of the standard deviation of ln(step) that no parameter explains."""
_FURTHEST = 3.0
"""Most spreads that a parameter may go: what asks for more is not a matter of rates."""
_STEP = 0.02
"""Of a logarithm, for derivatives."""
_TAIL = 3.0
"""Of `e^2`: a step that errs by so much counts half. Published steps of one site and shape scatter with such tails."""
_TOLD_BY = 3
"""Fewest steps of which one can be told to be odd."""
_ROUNDS = 12
_CLOSE = 1e-3
Floats = npt.NDArray[np.float64]
Predict = Callable[[Floats], Floats]
"""Logarithms of the steps' seconds from those of the parameters' changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One parameter that the steps moved, or could have."""

    name: str
    """Field of `TimeModel`."""
    before: float
    """Packaged."""
    after: float
    """Most likely."""
    spread_before: float
    """Prior standard deviation of its logarithm."""
    spread_after: float
    """Posterior one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a calibration found."""

    model: TimeModel
    """With the fitted parameters, and spreads as narrow as the steps allow."""
    parameters: tuple[Fitted, ...]
    """Those that the steps depend on, the surest gain first."""
    measured: tuple[float, ...]
    """Seconds of the steps."""
    before: tuple[float, ...]
    """Seconds predicted with the packaged parameters."""
    after: tuple[float, ...]
    """And with the fitted ones."""


def fit(
    prepared: Sequence[LocalStep],
    measured_seconds: Sequence[float],
    model: TimeModel,
    priors: Mapping[str, float] | None = None,
) -> Calibration:
    """Fit `model` to measured steps.

    Args: `prepared`: steps made ready by `local_step`; `priors`: spreads by parameter, where they are not those of
    `model.spread` by kind of work.

    Raises `UsageError` for no step, or a time that is none.
    """
    _check(prepared, measured_seconds)
    spreads = {name: (priors or {}).get(name, model.spread[kind]) for name, kind in PARAMETERS.items()}
    names = [name for name, spread in spreads.items() if getattr(model, name) > 0 and spread > 0]
    target = np.log(np.array(measured_seconds))

    def predict(logs: Floats) -> Floats:
        moved = _moved(model, names, logs)
        return np.log([max(time_step(step, moved).seconds, 1e-12) for step in prepared])

    sd = np.array([spreads[name] for name in names])
    first = predict(np.zeros(len(names)))
    noise = model.spread[_NOISE]
    tail = _TAIL if len(target) >= _TOLD_BY else np.inf
    logs, slope = _best(predict, names, target, sd, noise, tail=tail)
    after = predict(logs)
    slope = slope * np.sqrt(_weight((target - after) / noise, tail))[:, None]
    covariance = np.asarray(np.linalg.inv(slope.T @ slope / noise**2 + np.diag(1 / sd**2)), np.float64)
    fitted = _moved(model, names, logs)
    posterior = np.sqrt(np.diag(covariance))
    moved = [(posterior[i] / sd[i], name, i) for i, name in enumerate(names) if np.any(slope[:, i])]
    return Calibration(
        model=replace(fitted, spread=_narrowed(model, names, slope, sd, covariance)),
        parameters=tuple(
            Fitted(
                name=name,
                before=getattr(model, name),
                after=getattr(fitted, name),
                spread_before=float(sd[i]),
                spread_after=float(posterior[i]),
            )
            for _, name, i in sorted(moved)
        ),
        measured=tuple(measured_seconds),
        before=tuple(np.exp(first).tolist()),
        after=tuple(np.exp(after).tolist()),
    )


def _check(prepared: Sequence[LocalStep], measured_seconds: Sequence[float]) -> None:
    if not prepared or len(prepared) != len(measured_seconds):
        raise UsageError(f"{len(prepared)} steps and {len(measured_seconds)} times; a calibration needs one of each")
    if not all(0 < seconds < float("inf") for seconds in measured_seconds):
        raise UsageError(f"a step took {min(measured_seconds)} s; a time is above 0", hint="give seconds per step")


def _moved(model: TimeModel, names: Sequence[str], logs: Floats) -> TimeModel:
    values = {name: getattr(model, name) * float(np.exp(log)) for name, log in zip(names, logs, strict=True)}
    known: dict[str, Any] = values
    return replace(model, **known)


def _best(
    predict: Predict, names: Sequence[str], target: Floats, sd: Floats, noise: float, *, tail: float
) -> tuple[Floats, Floats]:
    """The likelier of the minima from the packaged rates and from those that explain every step, none being odd.

    The latter are sought from the packaged rates and from a slower host.
    """
    packaged = np.zeros(len(names))
    slower = np.where([name == _HOST for name in names], _SLOWER * sd, 0.0)

    def least(begins: Sequence[Floats], tail: float) -> tuple[Floats, Floats, float]:
        return min((_minimum(predict, b, target, sd, noise, tail=tail) for b in begins), key=lambda found: found[2])

    even = least([packaged, slower], np.inf)
    logs, slope, _ = even if np.isinf(tail) else least([packaged, even[0]], tail)
    return logs, slope


def _minimum(
    predict: Predict, begin: Floats, target: Floats, sd: Floats, noise: float, *, tail: float
) -> tuple[Floats, Floats, float]:
    """Likeliest logarithms near `begin`, the slope of the steps there (a row each), and what is left of the sum."""
    logs, now = begin, predict(begin)
    slope = _slope(predict, logs, now, np.arange(len(sd)))
    felt = np.flatnonzero(np.abs(slope).max(axis=0) > 0)

    def cost(now: Floats, logs: Floats) -> float:
        squares = ((target - now) / noise) ** 2
        left = squares if np.isinf(tail) else tail * np.log1p(squares / tail)
        return float(left.sum() + ((logs / sd) ** 2).sum())

    for _ in range(_ROUNDS):
        j, p = slope[:, felt], sd[felt]
        weighted = j.T * _weight((target - now) / noise, tail) / noise**2
        wanted = np.linalg.solve(weighted @ j + np.diag(1 / p**2), weighted @ (target - now + j @ logs[felt]))
        step = np.zeros(len(sd))
        step[felt] = np.clip(wanted, -_FURTHEST * p, _FURTHEST * p) - logs[felt]
        logs, now = _descend(predict, logs, step, cost)
        slope = _slope(predict, logs, now, felt)
        if np.abs(step).max(initial=0.0) < _CLOSE:
            break
    return logs, slope, cost(now, logs)


def _weight(errors: Floats, tail: float) -> Floats:
    """What steps count by their errors, in those of a usual step."""
    return np.asarray(1 / (1 + errors**2 / tail), np.float64)


def _descend(
    predict: Predict, logs: Floats, step: Floats, cost: Callable[[Floats, Floats], float]
) -> tuple[Floats, Floats]:
    """Go along `step` as far as the sum falls: whole, half, a quarter, ..."""
    now = predict(logs)
    start = cost(now, logs)
    for scale in (1.0, 0.5, 0.25, 0.125):
        there = predict(logs + scale * step)
        if cost(there, logs + scale * step) <= start:
            return logs + scale * step, there
    return logs, now


def _slope(predict: Predict, logs: Floats, now: Floats, columns: npt.NDArray[np.intp]) -> Floats:
    slope = np.zeros((len(now), len(logs)))
    for i in columns:
        there = logs.copy()
        there[i] += _STEP
        slope[:, i] = (predict(there) - now) / _STEP
    return slope


def _narrowed(
    model: TimeModel, names: Sequence[str], slope: Floats, sd: Floats, covariance: Floats
) -> dict[str, float]:
    """Spread by kind of work: as the steps' own spread by parameters of that kind fell. That of a step stays."""
    spread = dict(model.spread)
    for kind, packaged in model.spread.items():
        mine = [i for i, name in enumerate(names) if PARAMETERS[name] == kind]
        j = slope[:, mine]
        before = float(((j * sd[mine]) ** 2).sum())
        after = float(np.einsum("ri,ij,rj->", j, covariance[np.ix_(mine, mine)], j))
        if before > 0:
            spread[kind] = packaged * min((after / before) ** 0.5, 1.0)
    return spread
