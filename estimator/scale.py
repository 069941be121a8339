"""The same step at another batch size or sequence length, without running it: its numbers fitted over a few runs.

A step at a larger batch has the same ops in the same order, and its sizes are sums of terms in the batch: a + b n (and
c n^2 in the sequence length of attention). Least squares are a weighted sum of what was seen,

    y(n) = w_1 y(n_1) + w_2 y(n_2) + ...        n_i sizes seen, y(n_i) bytes, flops or seconds there, sum of w_i = 1

with weights that depend on the sizes alone, so they are found once, as fractions: data on the curve stay exact.

>>> fit_weights([1, 2], 8, degree=1)
[Fraction(-6, 1), Fraction(7, 1)]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.trace import Event, Op, Storage, Trace

Ids = dict[int, int]


class _Fit(NamedTuple):
    weights: Sequence[int]
    scale: int
    """The weights are fractions of it."""


def refit(traces: Sequence[Trace], batch_size: int, *, by: str = "batch_size", degree: int = 1) -> tuple[Trace, float]:
    """The step of `traces` where `batch[by]` is `batch_size`, and how far off the fit is.

    Args: `traces` differ in `batch[by]` only and have the same ops and storages in order; `degree` 1 fits lines, 2
    parabolas (`by="seq_len"`), and each needs one trace more than its degree.

    The second value is the relative error of the peak of the last trace, predicted from those before it; NaN if they
    are too few for that (two traces and a straight line). Seconds are fitted where all traces have them, else None.

    Raises `UsageError` for sizes that are missing, equal, too few or not positive, and `UnsupportedError` where the
    steps differ in more than sizes (it names the first op that does).
    """
    traces = [trace.without_waits() for trace in traces]
    sizes = [_size(trace, by) for trace in traces]
    if len(set(sizes)) != len(sizes) or len(sizes) <= degree:
        raise UsageError(
            f"{by} is {', '.join(map(str, sizes)) or 'nowhere'} in the traces to fit; a fit of degree {degree} needs "
            f"at least {degree + 1} different ones",
            hint="profile the same step at one size more",
        )
    if batch_size < 1:
        raise UsageError(f"{by} is {batch_size}; it must be 1 or more")
    ids = [_align(traces[-1], trace, by) for trace in traces]
    residual = math.nan
    if len(traces) - 1 > degree:
        guess = _predict(traces[-1], traces[:-1], ids[:-1], fit_weights(sizes[:-1], sizes[-1], degree))
        peak = traces[-1].peak_bytes()
        residual = abs(guess.peak_bytes() - peak) / peak if peak else 0.0
    found = _predict(traces[-1], traces, ids, fit_weights(sizes, batch_size, degree))
    note = f"Refit to {by} {batch_size} from steps at {', '.join(map(str, sorted(sizes)))}."
    origin = replace(found.origin, notes=(*found.origin.notes, note))
    found = replace(found, batch={**found.batch, by: batch_size}, origin=origin)
    found.check()
    return found, residual


def fit_weights(sizes: Sequence[int], size: int, degree: int) -> list[Fraction]:
    """What each value seen at `sizes` counts in the least-squares polynomial of `degree` at `size`; they sum to 1.

    With the Vandermonde matrix V of the sizes and v of `size`, w = V (V^T V)^-1 v, solved in fractions.
    """
    powers = range(degree + 1)
    rows = [[Fraction(sum(n ** (i + j) for n in sizes)) for j in powers] + [Fraction(size) ** i] for i in powers]
    for i in powers:
        pivot = next(k for k in range(i, degree + 1) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in powers:
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    solved = [row[-1] for row in rows]
    return [sum((solved[i] * n**i for i in powers), Fraction(0)) for n in sizes]


def _size(trace: Trace, by: str) -> int:
    size = trace.batch.get(by)
    if not isinstance(size, int) or size < 1:
        raise UsageError(f"a trace to fit has {by} {size!r}; it must be a positive whole number")
    return size


def _align(base: Trace, other: Trace, by: str) -> Ids:
    """The storage of `other` for each of `base`, by their places in the two steps."""
    ids = dict(_pinned_pairs(base, other))
    if len(base.ops) != len(other.ops):
        at = min(len(base.ops), len(other.ops))
        longer = base if len(base.ops) > at else other
        raise _differ(base, other, by, f"one goes on after {at} ops, with {longer.ops[at].name}")
    for index, (a, b) in enumerate(zip(base.ops, other.ops, strict=True)):
        if (a.name, a.module, a.phase, a.lane) != (b.name, b.module, b.phase, b.lane):
            raise _differ(base, other, by, f"op {index} is {_where(a)} and {_where(b)}")
        if not _pair_op(a, b, ids):
            raise _differ(
                base, other, by, f"op {index}, {_where(a)}, does not allocate, free and read in the same order"
            )
    # What is in no event and read by no op has no place in the step to tell it by.
    ids.update({i: i for i in base.storages.keys() - ids.keys() & other.storages.keys()})
    lost = [i for i in base.storages if ids.get(i) not in other.storages]
    if lost:
        raise _differ(base, other, by, f"storages {lost[:8]} have no counterpart")
    return ids


def _pair_op(a: Op, b: Op, ids: Ids) -> bool:
    """Enter the storages that two ops touch; False if their places do not agree."""
    if [_sign(e) for e in a.events] != [_sign(e) for e in b.events]:
        return False
    if (len(a.reads), len(a.writes)) != (len(b.reads), len(b.writes)):
        return False
    temporaries: Ids = {}
    pairs = [(e.storage, f.storage) for e, f in zip(a.events, b.events, strict=True)]
    pairs += zip((*a.reads, *a.writes), (*b.reads, *b.writes), strict=True)
    return all((ids if i >= 0 else temporaries).setdefault(i, j) == j for i, j in pairs)


def _pinned_pairs(base: Trace, other: Trace) -> Iterable[tuple[int, int]]:
    def key(storage: Storage) -> tuple[str, tuple[str, ...], str, int]:
        return (storage.kind.value, storage.module, storage.name, storage.id)

    ours = sorted((base.storages[i] for i in base.pinned), key=key)
    theirs = sorted((other.storages[i] for i in other.pinned), key=key)
    if [key(s)[:3] for s in ours] != [key(s)[:3] for s in theirs]:
        raise UnsupportedError(
            f"the steps to fit start with {len(ours)} and {len(theirs)} storages, or of other kinds and owners",
            hint="profile the same model and optimizer at each size",
        )
    return ((a.id, b.id) for a, b in zip(ours, theirs, strict=True))


def _sign(event: Event) -> tuple[bool, bool, int]:
    return (event.nbytes > 0, event.storage >= 0, event.stream)


def _where(op: Op) -> str:
    return f"{op.name} in {'.'.join(op.module) or 'the model'} ({op.phase.value})"


def _differ(base: Trace, other: Trace, by: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the steps at {by} {base.batch[by]} and {other.batch[by]} differ in more than sizes: {what}",
        hint="profile at the size itself: what this step does depends on it",
    )


def _predict(base: Trace, traces: Sequence[Trace], ids: Sequence[Ids], weights: Sequence[Fraction]) -> Trace:
    """`base` with every number replaced by its fit to `traces`."""
    scale = math.lcm(*(w.denominator for w in weights))
    fit = _Fit([int(w * scale) for w in weights], scale)
    storages = {
        i: _fit_storage(storage, [trace.storages[of[i]] for trace, of in zip(traces, ids, strict=True)], fit)
        for i, storage in base.storages.items()
    }
    rows = zip(base.ops, *(trace.ops for trace in traces), strict=True)
    ops = tuple(_fit_op(op, alike, storages, fit) for op, *alike in rows)
    setups = [trace.setup for trace in traces]
    if {tuple(map(_sign, setup)) for setup in setups} == {tuple(map(_sign, base.setup))}:
        setup = _fit_events(base.setup, setups, storages, fit)
    else:  # set-ups that differ lead to the same start
        setup = tuple(Event(storages[i].nbytes, 0, i) for i in sorted(base.pinned) if storages[i].nbytes)
    return replace(base, ops=ops, storages=storages, setup=setup)


def _whole(fit: _Fit, values: Iterable[int]) -> int:
    values = tuple(values)
    if values.count(values[0]) == len(values):
        return values[0]
    total = sum(w * value for w, value in zip(fit.weights, values, strict=True))
    return max(0, (2 * total + fit.scale) // (2 * fit.scale))


def _fit_storage(storage: Storage, alike: Sequence[Storage], fit: _Fit) -> Storage:
    shape = storage.shape
    if len({len(s.shape) for s in alike}) == 1:
        shape = tuple(_whole(fit, sizes) for sizes in zip(*(s.shape for s in alike), strict=True))
    return replace(storage, nbytes=_whole(fit, (s.nbytes for s in alike)), shape=shape)


def _fit_op(op: Op, alike: Sequence[Op], storages: Mapping[int, Storage], fit: _Fit) -> Op:
    times = [other.seconds for other in alike]
    seconds = None
    if None not in times:
        seconds = max(0.0, sum(w * (t or 0.0) for w, t in zip(fit.weights, times, strict=True)) / fit.scale)
    return replace(
        op,
        events=_fit_events(op.events, [other.events for other in alike], storages, fit),
        flops=_whole(fit, (other.flops for other in alike)),
        masked_flops=_whole(fit, (other.masked_flops for other in alike)),
        moved_bytes=_whole(fit, (other.moved_bytes for other in alike)),
        workspace_bytes=_whole(fit, (other.workspace_bytes for other in alike)),
        seconds=seconds,
    )


def _fit_events(
    events: Sequence[Event], lists: Sequence[Sequence[Event]], storages: Mapping[int, Storage], fit: _Fit
) -> tuple[Event, ...]:
    """Events of a storage have its size; one that shrinks to nothing has none."""
    found = []
    for event, *alike in zip(events, *lists, strict=True):
        known = storages.get(event.storage)
        nbytes = known.nbytes if known else _whole(fit, (abs(e.nbytes) for e in alike))
        if nbytes:
            found.append(event._replace(nbytes=nbytes if event.nbytes > 0 else -nbytes))
    return tuple(found)
