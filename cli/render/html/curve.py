"""Memory over the step as areas, and what is alive at each of its moments.

The picture has two to three hundred moments, each the largest of the events it stands for, so that the peak is among
them. Areas are polygons in a box of `MOMENTS` by 1,000, which the page stretches; text stays as it is.

>>> areas({"param": [1, 1], "temp": [0, 1]}, top=2)
[('param', 'M0,1000L0,500L1,500L1,1000Z'), ('temp', 'M0,500L0,500L1,0L1,500Z')]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnnmem.cli.render.alive import made, thing
from dnnmem.cli.render.chart import columns, sample
from dnnmem.cli.render.html.cells import swatch
from dnnmem.cli.render.palette import look
from dnnmem.cli.render.text import place, short_op
from dnnmem.estimator.alive import alive_at_moments
from dnnmem.estimator.profile import PARTS, Alive
from dnnmem.estimator.timeline import Timeline
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.units import format_bytes

MOMENTS = 240
"""Most moments of the picture."""
HELD = 8
"""Lines of what is alive at a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A picture of memory over a step."""

    width: int
    """Of its box: one less than its moments."""
    top_bytes: int
    """Upper edge: the peak, or what the allocator reserves if that is drawn."""
    areas: Sequence[tuple[str, str]]
    """Kind and outline, from bottom to top."""
    reserved: str
    """Line of the allocator's segments; empty if not known."""
    phases: Sequence[tuple[str, float, float]]
    """Name, begin and end in percent."""
    peak: float
    """Where the peak is, in percent."""
    data: Mapping[str, Any]
    """For the script: what is alive at each moment."""


def draw(timeline: Timeline, phases: Sequence[tuple[str, int]], trace: Trace | None) -> Curve | None:
    """The picture; None for a step that allocates nothing. Without `trace` moments tell their kinds only."""
    n = len(timeline.allocated)
    if not n or not timeline.allocated[timeline.peak]:
        return None
    intervals = columns(n, max(2, min(n, MOMENTS)))
    events = sample(timeline, intervals)
    kinds = {kind.value: line for kind, line in timeline.kinds.items() if line.any()}
    lines = {name: kinds[name][events].tolist() for name in PARTS if name in kinds}
    reserved = None if timeline.reserved is None else timeline.reserved[events].tolist()
    top = max(int(timeline.allocated[timeline.peak]), *(reserved or [0]))
    peak = next(i for i, (first, last) in enumerate(intervals) if first <= timeline.peak < last)
    width = len(events) - 1
    same = trace is not None and n == 1 + sum(len(op.events) for op in trace.ops)
    return Curve(
        width=width,
        top_bytes=top,
        areas=areas(lines, top),
        reserved="" if reserved is None else "M" + "L".join(_points(reserved, top)),
        phases=_phases(phases, intervals),
        peak=round(100 * peak / width, 3),
        data={"peak": peak, **_data(timeline, lines, events, phases, trace if same else None)},
    )


def areas(lines: Mapping[str, Sequence[int]], top: int) -> list[tuple[str, str]]:
    """Kinds one on the other; a kind's outline goes there along its floor and back along its ceiling."""
    found = []
    floor: list[int] = []
    for kind, line in lines.items():
        floor = floor or [0] * len(line)
        ceiling = [a + b for a, b in zip(floor, line, strict=True)]
        there, (first, *back) = _points(ceiling, top), _points(floor, top)
        found.append((kind, f"M{first}L{'L'.join(there)}L{'L'.join(reversed(back))}Z" if back else ""))
        floor = ceiling
    return found


def outline(timeline: Timeline, top: int) -> tuple[str, int]:
    """A line of all that is allocated in a box of its own width, for a comparison; and that width."""
    n = len(timeline.allocated)
    events = sample(timeline, columns(n, max(2, min(n, MOMENTS)))) if n else [0, 0]
    values = timeline.allocated[events].tolist() if n else [0, 0]
    return "M" + "L".join(_points(values, top)), len(events) - 1


def _points(values: Sequence[int], top: int) -> list[str]:
    return [f"{x},{1000 - round(1000 * value / top) if top else 1000}" for x, value in enumerate(values)]


def _phases(phases: Sequence[tuple[str, int]], intervals: Sequence[tuple[int, int]]) -> list[tuple[str, float, float]]:
    n = len(intervals)
    starts = [next((i for i, (_, last) in enumerate(intervals) if start < last), n) for _, start in phases]
    ends = [*starts[1:], n]
    return [
        (name, round(100 * a / n, 3), round(100 * b / n, 3))
        for (name, _), a, b in zip(phases, starts, ends, strict=True)
        if b > a
    ]


class _Words:
    """Texts that repeat are written once."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))


def _data(
    timeline: Timeline,
    lines: Mapping[str, Sequence[int]],
    events: Sequence[int],
    phases: Sequence[tuple[str, int]],
    trace: Trace | None,
) -> dict[str, Any]:
    """What the script tells of each moment: place, sums, what is alive; words that repeat are written once."""
    words = _Words()
    order = sorted(set(events))
    held = dict(zip(order, alive_at_moments(trace, order, HELD), strict=True)) if trace else {}
    moments = []
    for i, event in enumerate(events):
        phase = next((name for name, start in reversed(phases) if start <= event), "")
        where, source = _where(timeline, event, trace, phase)
        sums = _sums(timeline, event, {kind: line[i] for kind, line in lines.items()})
        alive = [_line(item, words) for item in held.get(event, ())]
        moments.append([words(where), words(f"{sums}; {source}" if source else sums), alive])
    named = [[swatch(name), look(name).label] for name in lines]
    return {"kinds": named, "moments": moments, "words": list(words.index)}


def _where(timeline: Timeline, event: int, trace: Trace | None, phase: str) -> tuple[str, str]:
    """The moment in words, and the line of the user."""
    index = int(timeline.op[event])
    if index < 0 and trace is not None:
        return "as the step begins", ""
    if trace is None:
        return (f"in {phase}" if phase else "in the step"), ""
    op = trace.ops[index]
    return f"in {op.phase.value}, in {place('.'.join(op.module))}, by {short_op(op.name)}", op.source


def _sums(timeline: Timeline, event: int, sums: Mapping[str, int]) -> str:
    total = f"{format_bytes(int(timeline.allocated[event]))} allocated"
    if timeline.reserved is not None:
        total += f", {format_bytes(int(timeline.reserved[event]))} reserved"
    largest = sorted(((kind, n) for kind, n in sums.items() if n), key=lambda item: -item[1])
    return f"{total}: " + ", ".join(f"{look(kind).label} {format_bytes(n)}" for kind, n in largest)


def _line(item: Alive, words: _Words) -> list[Any]:
    size = words(format_bytes(item.nbytes))
    what = words(thing(item) or "the model itself")
    return [swatch(item.kind), what, words(made(item)), item.count, size, item.nbytes]


def ticks(top_bytes: int) -> list[tuple[str, float]]:
    """Labels of the axis, and how far from the top in percent."""
    return [(format_bytes(round(top_bytes * part / 4)), 100 - 25 * part) for part in (4, 3, 2, 1)]
