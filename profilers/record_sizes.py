"""The traces that a search needs: a step at several micro-batches, few of its blocks, made by one child, or two.

    recorded   M, M / 2 and 1, three blocks of each           torch is imported once
    refit      the other divisors of M, from M and M / 2      exact, since sizes are lines in the batch

Where three blocks cannot stand for all, or the steps of two sizes differ in more than sizes, more is recorded. A step
that a fake run cannot do, since it depends on values or names CUDA itself, is recorded on a virtual GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import DnnmemError, UnsupportedError
from dnnmem.estimator.own_remat import NOTE as OWN_REMAT
from dnnmem.estimator.own_remat import computes_again
from dnnmem.estimator.recorded import BLOCKS, Recorded
from dnnmem.estimator.repeat import repeat
from dnnmem.estimator.scale import refit
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.trace_file import load_trace
from dnnmem.profilers.request import Request
from dnnmem.profilers.run_many import run_many
from dnnmem.profilers.spread import spread
from dnnmem.profilers.targets.frames import NO_GPU
from dnnmem.profilers.virtual_gpu.launch import unavailable

FEW = 3
"""Blocks that are recorded of many."""
_OF_A_CHILD = 3
"""Steps that one process records: another one would take as long to import torch."""
_MOST_SIZES = 8
"""Micro-batches, at most."""
_ONE = 1 << 40
"""Divides every batch to one sample."""
_NO_VALUES = "depends on values that a fake run does not have"
_DIED = "died with SIG"
_TOLD = (_NO_VALUES, "nobody knows", "those of a CPU", "no gradient reaches", "are counted as 0")
"""What is said of a record in notes that a search must not keep to itself."""


def record_sizes(
    request: Request,
    computes: Sequence[str] = (),
    *,
    cache: Path | None = None,
    on_output: Callable[[str], None] = lambda _: None,
) -> Recorded:
    """The step of `request` at its batch, and at the divisors of that; also in the types `computes`, where it runs so.

    Raises what recording raises.
    """
    try:
        return _record(replace(request, blocks=FEW), computes, cache, on_output)
    except UnsupportedError:
        return _record(request, computes, cache, on_output)


def record_batches(request: Request, sizes: Sequence[int], *, few: bool = True, cache: Path | None = None) -> Recorded:
    """The step of `request` at `sizes`, each recorded; with few of the model's blocks where they can stand for all.

    Raises what recording raises.
    """
    wanted = [replace(request, batch_size=size, blocks=FEW if few else None) for size in sizes]
    try:
        return _recorded(_by_size(_run(wanted, cache, lambda _: None)))
    except DnnmemError:
        if not few:
            raise
        return record_batches(request, sizes, few=False, cache=cache)


def of_saved(traces: Sequence[Trace]) -> Recorded:
    """The same from saved traces of one step, at one micro-batch or more."""
    found = {_size(trace): trace for trace in traces}
    return _recorded(found)


def micro_batches(most: int) -> list[int]:
    """Divisors of the largest micro-batch, the largest first; of many, those that come from halving it.

    >>> micro_batches(12), micro_batches(96)[:3]
    ([12, 6, 4, 3, 2, 1], [96, 48, 24])
    """
    divisors = [n for n in range(most, 0, -1) if most % n == 0]
    if len(divisors) > _MOST_SIZES:
        divisors = [n for n in divisors if (most // n) & (most // n - 1) == 0 or n == 1]
    return divisors[:_MOST_SIZES]


def _record(request: Request, computes: Sequence[str], cache: Path | None, say: Callable[[str], None]) -> Recorded:
    """Record M, M / 2 and 1 in all types; each by its number where M is known, else as parts of the target's own."""
    if request.batch_size is None:
        wanted = [replace(request, batch_divisor=divisor) for divisor in (1, 2, _ONE)]
    else:
        sizes = dict.fromkeys((request.batch_size, max(request.batch_size // 2, 1), 1))
        wanted = [replace(request, batch_size=size) for size in sizes]
    types = (None, *computes)
    answers = _run([replace(one, compute=compute) for compute in types for one in wanted], cache, say)
    mine = [answers[n : n + len(wanted)] for n in range(0, len(answers), len(wanted))]
    plain = _recorded(_all_sizes(request, mine[0], cache, say))
    in_types, refused = {}, {}
    for compute, some in zip(computes, mine[1:], strict=True):
        try:
            traces = _all_sizes(replace(request, compute=compute), some, cache, say)
        except DnnmemError as error:
            refused[compute] = _in_a_line(error)
            continue
        with suppress(UnsupportedError):  # blocks that are not alike in this type alone
            found = _recorded(traces)
            if found.layers == plain.layers:
                in_types[compute] = found.traces
    return replace(plain, in_types=in_types, refused=refused)


def _all_sizes(
    request: Request, answers: Sequence[Trace | DnnmemError], cache: Path | None, say: Callable[[str], None]
) -> dict[int, Trace]:
    """What was recorded, and what lies between; raises what went wrong."""
    found = _by_size(answers)
    missing = [n for n in micro_batches(max(found)) if n not in found]
    try:
        pair = [found[n] for n in sorted(found, reverse=True)[:2]]
        return found | {n: refit(pair, n)[0] for n in missing}
    except DnnmemError:  # the steps differ in more than sizes
        more = _run([replace(request, batch_size=n, batch_divisor=1) for n in missing], cache, say)
        return found | _by_size(more)


def _by_size(answers: Sequence[Trace | DnnmemError]) -> dict[int, Trace]:
    found: dict[int, Trace] = {}
    for answer in answers:
        if isinstance(answer, DnnmemError):
            raise answer
        found.setdefault(_size(answer), answer)
    return found


def _run(requests: Sequence[Request], cache: Path | None, say: Callable[[str], None]) -> list[Trace | DnnmemError]:
    """The answers in the order of the requests; of a virtual GPU where a fake one lacks values and there may be one."""
    if not all(map(_may_be_virtual, requests)):
        return _answers(requests, cache, say)
    answers = _answers([replace(request, extrapolate=False) for request in requests], cache, say)
    if any(map(_is_beyond_fake, answers)):
        return _answers([replace(request, device="virtual") for request in requests], cache, say)
    return answers


def _is_beyond_fake(answer: Trace | DnnmemError) -> bool:
    """Whether a fake run lacked values, or the GPU that the program names, or died (of torch.compile)."""
    return isinstance(answer, DnnmemError) and any(mark in answer.message for mark in (_NO_VALUES, *NO_GPU, _DIED))


def _may_be_virtual(request: Request) -> bool:
    if request.device != "fake" or request.gpu is None or request.gpu_file:
        return False
    return find_device(request.gpu).vendor == "nvidia" and unavailable() is None


def _answers(requests: Sequence[Request], cache: Path | None, say: Callable[[str], None]) -> list[Trace | DnnmemError]:
    """The answers in the order of the requests; where these are many, two children share them."""
    found: dict[int, Trace | DnnmemError] = {}
    children = 2 if len(requests) > _OF_A_CHILD else 1

    def share(first: int) -> None:
        mine = range(first, len(requests), children)
        with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
            for i, answer in run_many([requests[n] for n in mine], Path(name), cache=cache, on_output=say):
                found[mine[i]] = answer if isinstance(answer, DnnmemError) else load_trace(answer)[0]

    for _ in spread(share, range(children), workers=children):
        pass
    return [found[i] for i in range(len(requests))]


def _in_a_line(error: DnnmemError) -> str:
    """What it says, without the traceback in between."""
    lines = error.message.splitlines()
    return ": ".join(dict.fromkeys((lines[0], lines[-1].strip())))


def _recorded(found: dict[int, Trace]) -> Recorded:
    own = max(found)
    counts = {trace.batch.get(BLOCKS) for trace in found.values()}
    layers = counts.pop() if len(counts) == 1 else None
    plain = {
        n: replace(trace, batch={key: value for key, value in trace.batch.items() if key != BLOCKS})
        for n, trace in sorted(found.items(), reverse=True)
    }
    notes = tuple(note for note in plain[own].origin.notes if any(words in note for words in _TOLD))
    notes += (OWN_REMAT,) * computes_again(plain[own])
    if layers is None:
        return Recorded(traces=plain, layers=None, own_batch=own, notes=notes)
    for trace in plain.values():
        repeat(trace, FEW + 1)  # raises where the blocks are not alike
    return Recorded(traces=plain, layers=int(layers), own_batch=own, notes=notes)


def _size(trace: Trace) -> int:
    return int(trace.batch.get("batch_size", 1))
