"""When each op runs: four lanes and a host that issues to them, so that overlap, stalls and prefetch are results.

    host       |issue 0|issue 1|issue 2|issue 3| ...                        in program order
    compute            |  op 0  |op 1   |.......|  op 3  |                  `.`: waits for what it reads
    comm                        |     op 2      |                         the ops before it in the program are its event

An op starts when its lane is free, the host has issued it, the last writer of each storage it reads has ended, and so
have the readers and writers of each storage it overwrites. An op of a side lane waits for the compute ops before it in
the program too, as a stream waits for an event recorded where it was issued. Compute waits for side lanes only through
storages: before it reads or overwrites them, and behind an op that frees what is still on its way to the host, since
that memory serves again. Collectives over one axis of the mesh follow each other; those over different axes overlap.
Compute that runs beside a collective is slower by `contention`: NCCL's kernels take multiprocessors and bandwidth.

>>> from dnnmem.estimator.trace import Op
>>> gather = Op(name="dnnmem.all_gather.dp_shard", lane=Lane.COMM, writes=(1,))
>>> ops = (gather, Op(name="aten.mm", writes=(2,)), Op(name="aten.mm", reads=(1, 2)))
>>> timing = simulate(ops, [3.0, 2.0, 1.0], [0.0, 0.0, 0.0])
>>> timing.seconds, timing.start.tolist(), timing.exposed["comm"], timing.bound
(4.0, [0.0, 0.0, 3.0], 1.0, 'compute')
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnmem.estimator.errors import TraceError
from dnnmem.estimator.trace import Lane, Op

HOST = "host"
"""The host as a cause in `Timing.exposed`."""

CAUSES = (*(lane.value for lane in Lane if lane is not Lane.COMPUTE), HOST)
"""What the compute lane can wait for: `comm`, `to_host`, `to_device`, `host`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When the ops of a step ran."""

    start: NDArray[np.float64]
    """Second at which each op starts; the host issues the first at 0."""
    end: NDArray[np.float64]
    """Second at which each op ends."""
    seconds: float
    """Until the last op ends and the host is done."""
    busy: Mapping[Lane, float]
    """Seconds that each lane works, contention left out; of COMM, the communicator that works longest."""
    host_seconds: float
    """Seconds that the host works."""
    exposed: Mapping[str, float]
    """Seconds that the compute lane stands still, by cause (`CAUSES`), or is slowed by collectives (`comm`); with its
    work they add up to `seconds`."""

    @property
    def bound(self) -> str:
        """The lane that works longest, or `host`: without a change of its ops the step cannot be shorter than that."""
        work = {**{lane.value: seconds for lane, seconds in self.busy.items()}, HOST: self.host_seconds}
        return max(work, key=lambda name: work[name])


def simulate(
    ops: Sequence[Op],
    seconds: Any,  # noqa: ANN401  (array or list)
    host_seconds: Any,  # noqa: ANN401
    contention: float = 0.0,
) -> Timing:
    """Run `ops` in order: `seconds` on their lanes, `host_seconds` to issue each.

    `contention`: what a second of compute takes longer beside a collective. Raises `TraceError` unless there are as
    many seconds as ops, all of them finite and not negative.
    """
    durations, issues = _checked(ops, seconds), _checked(ops, host_seconds)
    start, end, exposed = _run(ops, durations, issues, contention)
    host = math.fsum(issues)
    return Timing(
        start=np.array(start, dtype=np.float64),
        end=np.array(end, dtype=np.float64),
        seconds=max(host, max(end, default=0.0)),
        busy=_busy(ops, durations),
        host_seconds=host,
        exposed=exposed,
    )


def _busy(ops: Sequence[Op], seconds: list[float]) -> dict[Lane, float]:
    computing: list[float] = []  # by far the most, and hashing their lane takes long
    work: dict[tuple[Lane, str], list[float]] = {(Lane.COMPUTE, Lane.COMPUTE.value): computing}
    for op, duration in zip(ops, seconds, strict=True):
        if op.lane is Lane.COMPUTE:
            computing.append(duration)
        else:
            work.setdefault((op.lane, _engine(op)), []).append(duration)
    return {lane: max((math.fsum(work[key]) for key in work if key[0] is lane), default=0.0) for lane in Lane}


def _engine(op: Op) -> str:
    """What runs an op of a side lane: a copy engine, or the communicator of an axis of the mesh."""
    return op.name.rpartition(".")[2] if op.lane is Lane.COMM else op.lane.value


def _checked(ops: Sequence[Op], seconds: Any) -> list[float]:  # noqa: ANN401  (array or list)
    values = np.asarray(seconds, dtype=np.float64)
    if values.shape != (len(ops),):
        raise TraceError(f"{len(ops)} ops have {values.size} times; each op has one")
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if wrong.size:
        at = int(wrong[0])
        raise TraceError(f"op {at} ({ops[at].name}) takes {values[at]} seconds; a time is finite and not negative")
    listed: list[float] = values.tolist()
    return listed


def _run(  # noqa: C901, PLR0912  (one loop over all ops, written for speed)
    ops: Sequence[Op], seconds: list[float], issues: list[float], contention: float
) -> tuple[list[float], list[float], dict[str, float]]:
    """Start and end of each op, and the seconds that the compute lane waits, by cause."""
    compute = Lane.COMPUTE
    computed = 0.0  # second at which the compute lane is done
    free: dict[str, float] = {}  # the same of each copy engine and communicator
    written: dict[int, float] = {}  # of each storage: end of its last writer
    used: dict[int, float] = {}  # of each storage: latest end of its writer and readers
    side: dict[float, str] = {}  # side lane that ends at this second
    leaving: dict[int, float] = {}  # of each storage that is copied to the host: when it is there
    sent: list[tuple[float, float]] = []  # start and end of the last collectives
    start, end, exposed, issued = [], [], dict.fromkeys(CAUSES, 0.0), 0.0
    for op, duration, issue in zip(ops, seconds, issues, strict=True):
        reads, writes = op.reads, op.writes
        alone = op.lane is compute
        engine = "" if alone else _engine(op)
        issued += issue
        begin = computed if alone else max(computed, free.get(engine, 0.0))
        for storage in reads:
            if storage in written and written[storage] > begin:
                begin = written[storage]
        for storage in writes:
            if storage in used and used[storage] > begin:
                begin = used[storage]
        if alone and (begin > computed or issued > computed):
            _blame(exposed, computed, begin, issued, side)
        begin = max(begin, issued)
        done = begin + duration
        if alone and sent:
            done = _beside(sent, begin, done, contention)
            exposed["comm"] += done - begin - duration
        for storage in reads:
            if storage not in used or done > used[storage]:
                used[storage] = done
        for storage in writes:
            written[storage] = used[storage] = done
        if alone:
            computed = _freed(op, done, leaving, exposed) if leaving else done
        else:
            free[engine] = done
            side[done] = op.lane.value
            if contention and op.lane is Lane.COMM:
                insort(sent, (begin, done))
            if op.lane is Lane.TO_HOST:
                leaving.update(dict.fromkeys(reads, done))
        start.append(begin)
        end.append(done)
    _blame(exposed, computed, max((computed, *free.values())), issued, side)
    return start, end, exposed


def _beside(sent: list[tuple[float, float]], begin: float, done: float, contention: float) -> float:
    """When compute from `begin` to `done` is done beside collectives; what has ended before is forgotten."""
    while sent and sent[0][1] <= begin:
        sent.pop(0)
    now, left = begin, done - begin
    for start, end in sent:  # of several at a time one counts
        if end <= now or start >= now + left:
            continue
        if start > now:
            left -= start - now
            now = start
        if left * (1 + contention) <= end - now:
            return now + left * (1 + contention)
        left -= (end - now) / (1 + contention)
        now = end
    return now + left if now > begin else done


def _freed(op: Op, done: float, leaving: dict[int, float], exposed: dict[str, float]) -> float:
    """When compute goes on behind `op`: not before copies of what it frees have ended."""
    gone = [leaving.pop(event.storage) for event in op.events if event.nbytes < 0 and event.storage in leaving]
    until = max(done, *gone) if gone else done
    exposed[Lane.TO_HOST.value] += until - done
    return until


def _blame(exposed: dict[str, float], last: float, ready: float, issued: float, side: Mapping[float, str]) -> None:
    """Charge the time after `last`: to the side lane that ends at `ready`, from then until `issued` to the host.

    While both keep the compute lane waiting, the side lane is charged: a faster host would gain nothing.
    """
    if ready > last:
        exposed[side[ready]] += ready - last
    if issued > max(ready, last):
        exposed[HOST] += issued - max(ready, last)
