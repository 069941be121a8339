"""The traces that a search needs: a step at several micro-batches, few of its blocks, made by one child process.

    recorded   M, M / 2 and 1, three blocks of each           torch is imported once
    refit      the other divisors of M, from M and M / 2      exact, since sizes are lines in the batch

Where three blocks cannot stand for all, or the steps of two sizes differ in more than sizes, more is recorded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dnnmem.estimator.errors import DnnmemError, UnsupportedError
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.repeat import repeat
from dnnmem.estimator.scale import refit
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.trace_file import load_trace
from dnnmem.profilers.few_blocks import COUNT
from dnnmem.profilers.request import Request
from dnnmem.profilers.run_many import run_many

FEW = 3
"""Blocks that are recorded of many."""
_MOST_SIZES = 8
"""Micro-batches, at most."""
_ONE = 1 << 40
"""Divides every batch to one sample."""


def record_sizes(
    request: Request, *, cache: Path | None = None, on_output: Callable[[str], None] = lambda _: None
) -> Recorded:
    """The step of `request` at its batch, and at the divisors of that. Raises what recording raises."""
    try:
        return _record(replace(request, blocks=FEW), cache, on_output)
    except UnsupportedError:
        return _record(request, cache, on_output)


def of_saved(traces: Sequence[Trace]) -> Recorded:
    """The same from saved traces of one step, at one micro-batch or more."""
    found = {_size(trace): trace for trace in traces}
    return _recorded(found, max(found))


def micro_batches(most: int) -> list[int]:
    """Divisors of the largest micro-batch, the largest first; of many, those that come from halving it.

    >>> micro_batches(12), micro_batches(96)[:3]
    ([12, 6, 4, 3, 2, 1], [96, 48, 24])
    """
    divisors = [n for n in range(most, 0, -1) if most % n == 0]
    if len(divisors) > _MOST_SIZES:
        divisors = [n for n in divisors if (most // n) & (most // n - 1) == 0 or n == 1]
    return divisors[:_MOST_SIZES]


def _record(request: Request, cache: Path | None, say: Callable[[str], None]) -> Recorded:
    """Record M, M / 2 and 1; each by its number where M is known, else as parts of the target's own batch."""
    if request.batch_size is None:
        wanted = [replace(request, batch_divisor=divisor) for divisor in (1, 2, _ONE)]
    else:
        sizes = dict.fromkeys((request.batch_size, max(request.batch_size // 2, 1), 1))
        wanted = [replace(request, batch_size=size) for size in sizes]
    found = _run(wanted, cache, say)
    largest = max(found)
    missing = [n for n in micro_batches(largest) if n not in found]
    try:
        pair = [found[n] for n in sorted(found, reverse=True)[:2]]
        found.update({n: refit(pair, n)[0] for n in missing})
    except DnnmemError:  # the steps differ in more than sizes
        found.update(_run([replace(request, batch_size=n, batch_divisor=1) for n in missing], cache, say))
    return _recorded(found, largest)


def _run(requests: Sequence[Request], cache: Path | None, say: Callable[[str], None]) -> dict[int, Trace]:
    found: dict[int, Trace] = {}
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        for _, answer in run_many(requests, Path(name), cache=cache, on_output=say):
            if isinstance(answer, DnnmemError):
                raise answer
            trace, _ = load_trace(answer)
            found.setdefault(_size(trace), trace)
    return found


def _recorded(found: dict[int, Trace], own: int) -> Recorded:
    counts = {trace.batch.get(COUNT) for trace in found.values()}
    layers = counts.pop() if len(counts) == 1 else None
    plain = {
        n: replace(trace, batch={key: value for key, value in trace.batch.items() if key != COUNT})
        for n, trace in sorted(found.items(), reverse=True)
    }
    if layers is None:
        return Recorded(traces=plain, layers=None, own_batch=own)
    for trace in plain.values():
        repeat(trace, FEW + 1)  # raises where the blocks are not alike
    return Recorded(traces=plain, layers=int(layers), own_batch=own)


def _size(trace: Trace) -> int:
    return int(trace.batch.get("batch_size", 1))
