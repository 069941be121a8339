"""A step as a trace that Perfetto and chrome://tracing open: bytes by kind as counters, layers as slices.

    counters   bytes by kind and by module, reserved     after each op that changes them
    slices     phases; below them modules, nested        from the first op of a visit to its last

Where no seconds were measured, time is the number of the op in microseconds: the order is true, the lengths are not.

>>> from dnnmem.estimator.trace import Op, Phase
>>> step = Trace(ops=(Op(name="aten.mm", module=("fc",), phase=Phase.FORWARD),), storages={})
>>> [(event["ph"], event["name"]) for event in perfetto_events(step) if event["ph"] in "BE"]
[('B', 'forward'), ('B', 'fc'), ('E', 'fc'), ('E', 'forward')]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dnnmem.estimator.replay import replay_curve
from dnnmem.estimator.timeline import by_module, timeline
from dnnmem.estimator.trace import Trace

MODULES = 12
"""The largest modules have a counter of their own."""
_PROCESS, _LAYERS = 1, 1
_MICROSECOND = 1e-6


def to_perfetto(trace: Trace) -> str:
    """The file's text."""
    measured = any(op.seconds for op in trace.ops)
    about = {
        "target": trace.origin.target,
        "device": trace.origin.device,
        "gpu": trace.origin.gpu or "",
        "time": "measured seconds of each op" if measured else "the number of the op; no seconds were measured",
    }
    data = {"traceEvents": list(perfetto_events(trace)), "displayTimeUnit": "ms", "otherData": about}
    return json.dumps(data, separators=(",", ":")) + "\n"


def perfetto_events(trace: Trace) -> Iterator[dict[str, Any]]:
    """Events of Chrome's JSON format, by time."""
    name = {"name": "process_name", "args": {"name": f"dnnmem {trace.origin.target}".strip()}}
    yield {"ph": "M", "pid": _PROCESS, "tid": 0, **name}
    yield {"ph": "M", "pid": _PROCESS, "tid": _LAYERS, "name": "thread_name", "args": {"name": "layers"}}
    starts = _starts(trace)
    rows = [*_slices(trace, starts), *_counters(trace, starts)]
    yield from sorted(rows, key=lambda event: event["ts"])


def _starts(trace: Trace) -> list[float]:
    """When each op starts and, last, when the step ends: microseconds."""
    measured = any(op.seconds for op in trace.ops)
    starts, now = [0.0], 0.0
    for op in trace.ops:
        now += (op.seconds or 0.0) / _MICROSECOND if measured else 1.0
        starts.append(now)
    return starts


def _slices(trace: Trace, starts: list[float]) -> Iterator[dict[str, Any]]:
    open_: list[str] = []
    for index, op in enumerate(trace.ops):
        path = [op.phase.value, *op.module]
        common = 0
        while common < min(len(open_), len(path)) and open_[common] == path[common]:
            common += 1
        while len(open_) > common:
            yield _mark("E", open_.pop(), starts[index])
        for part in path[common:]:
            open_.append(part)
            yield _mark("B", part, starts[index])
    while open_:
        yield _mark("E", open_.pop(), starts[-1])


def _mark(phase: str, name: str, at: float) -> dict[str, Any]:
    return {"ph": phase, "pid": _PROCESS, "tid": _LAYERS, "ts": at, "name": name, "cat": "layer"}


def _counters(trace: Trace, starts: list[float]) -> Iterator[dict[str, Any]]:
    curve, played = timeline(trace), replay_curve(trace)
    moments: list[tuple[int, int]] = []
    last = 0
    for index, op in enumerate(trace.ops):
        first, last = last, last + len(op.events)
        if first == last and index:
            continue
        at = first + int(curve.allocated[first + 1 : last + 1].argmax()) + 1 if last > first else first
        kinds = {kind.value: int(line[at]) for kind, line in curve.kinds.items() if line.any()}
        yield _count("bytes by kind", kinds, starts[index])
        yield _count("reserved bytes", {"reserved": int(played.reserved[at])}, starts[index])
        moments.append((index, at))
    held = by_module(trace, [at for _, at in moments])
    largest = sorted(held, key=lambda name: -max(held[name]))[:MODULES]
    for number, (index, _) in enumerate(moments):
        yield _count("bytes by module", {name: held[name][number] for name in largest}, starts[index])


def _count(name: str, values: dict[str, int], at: float) -> dict[str, Any]:
    return {"ph": "C", "pid": _PROCESS, "tid": 0, "ts": at, "name": name, "args": values}
