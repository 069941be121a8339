"""Which ops of a block to keep, each set with its bytes and the time of what runs again: by knapsack, and by least cut.

    knapsack   bytes of what is kept against seconds that it saves; all sets that no other beats, exactly
    cut        some ops never run again; of the rest, the fewest bytes out of which all that is needed can be made

PyTorch's compiler joins both for `activation_memory_budget`: a knapsack decides what never runs again, and a cut what
is kept. In eager mode, under a selective checkpoint, a block runs again up to the last value that its backward pass
needs, all but the kept ops: that is the time counted here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dnnmem.estimator.planners.op_graph import Graph

_GRAINS = 2048
"""Of two sets whose bytes agree to one part in so many of the graph's, only the faster one is followed."""
_INFINITE = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A set of ops whose outputs outlast the forward pass."""

    works: frozenset[int]
    """By index in the graph."""
    saved_bytes: int
    """Of their outputs."""
    seconds: float
    """Of what runs again."""


def kept(graph: Graph, works: Collection[int]) -> Kept:
    """What it takes to keep the outputs of `works`."""
    saved = sum(graph.nbytes[v] for k in works for v in graph.works[k].makes)
    return Kept(works=frozenset(works), saved_bytes=saved, seconds=seconds_again(graph, works))


def seconds_again(graph: Graph, works: Collection[int]) -> float:
    """Time of running a block again where `works` are kept: all others, up to the last that is needed."""
    needed = graph.needed()
    again = [k for k in range(graph.turn) if k not in works]
    stop = max((k for k in again if not needed.isdisjoint(graph.works[k].makes)), default=-1)
    return sum(graph.works[k].seconds for k in again if k <= stop)


def knapsack(graph: Graph, worth: float = 0.0) -> list[Kept]:
    """The sets that no other beats in both bytes and seconds, fewest bytes first.

    `worth`: share of the forward pass's time from which on a work is looked at; what must be kept is so in any case.
    """
    works, needed = graph.works, graph.needed()
    least = worth * sum(work.seconds for work in works[: graph.turn])
    size = [sum(graph.nbytes[v] for v in work.makes) for work in works]
    grain = max(sum(size[: graph.turn]) // _GRAINS, 1)
    makers = [k for k in range(graph.turn) if not needed.isdisjoint(works[k].makes)]
    found: list[tuple[int, float, tuple[int, ...]]] = []
    for stop in (-1, *makers):  # the last work that runs again; what is needed behind it is kept
        forced = tuple(k for k in makers if k > stop)
        if not all(works[k].keeps for k in forced):
            continue
        total = sum(works[k].seconds for k in range(stop + 1))
        front = [(sum(size[k] for k in forced), total, forced)]
        for k in range(stop):
            if works[k].keeps and works[k].seconds > least:
                more = [(saved + size[k], time - works[k].seconds, (*chosen, k)) for saved, time, chosen in front]
                front = _front([*front, *more], grain)
        found += front
    return [kept(graph, chosen) for _, _, chosen in _front(found, 1)]


def front_of(sets: Iterable[Kept]) -> list[Kept]:
    """Those of `sets` that no other beats, fewest bytes first."""
    found: list[Kept] = []
    for one in sorted(sets, key=lambda one: (one.saved_bytes, one.seconds)):
        if not found or one.seconds < found[-1].seconds:
            found.append(one)
    return found


def _front(sets: list[tuple[int, float, tuple[int, ...]]], grain: int) -> list[tuple[int, float, tuple[int, ...]]]:
    found: list[tuple[int, float, tuple[int, ...]]] = []
    for one in sorted(sets, key=lambda one: one[:2]):
        if found and one[1] >= found[-1][1]:
            continue
        if found and one[0] // grain == found[-1][0] // grain and len(found) > 1:
            found[-1] = one
        else:
            found.append(one)
    return found


def cuts(graph: Graph) -> list[Kept]:
    """What a least cut keeps as ever more works, those of most seconds a byte first, never run again."""
    dear = [k for k in range(graph.turn) if graph.works[k].keeps and graph.works[k].seconds]
    dear.sort(key=lambda k: -graph.works[k].seconds / max(sum(graph.nbytes[v] for v in graph.works[k].makes), 1))
    chosen = (cut(graph, frozenset(dear[:count])) for count in range(len(dear) + 1))
    return front_of(kept(graph, works) for works in chosen if works is not None)


def cut(graph: Graph, once: Collection[int]) -> frozenset[int] | None:
    """The works of fewest bytes to keep if those of `once` never run again; None if what they make cannot be kept."""
    source, sink, count = 2 * len(graph.nbytes), 2 * len(graph.nbytes) + 1, 2 * len(graph.nbytes) + 2
    flow: list[dict[int, int]] = [{} for _ in range(count)]

    def edge(a: int, b: int, room: int) -> None:
        flow[a][b] = flow[a].get(b, 0) + room
        flow[b].setdefault(a, 0)

    makers: dict[int, int] = {}
    for k, work in enumerate(graph.works[: graph.turn]):
        for v in work.makes:
            makers[v] = k
            edge(2 * v, 2 * v + 1, graph.nbytes[v] if work.keeps else _INFINITE)
            if k in once:
                edge(source, 2 * v, _INFINITE)
            for r in () if k in once else work.reads:
                edge(2 * r + 1, 2 * v, _INFINITE)
    for v in graph.needed():
        edge(2 * v + 1, sink, _INFINITE)
    if _fill(flow, source, sink) >= _INFINITE:
        return None
    near = set(_reached(flow, source))
    return frozenset(makers[v] for v in makers if 2 * v in near and 2 * v + 1 not in near)


def _fill(flow: Sequence[dict[int, int]], source: int, sink: int) -> int:
    """The most that flows, along shortest ways (Edmonds and Karp 1972); `flow` is left with the room that remains."""
    total = 0
    while sink in (came := _reached(flow, source)) and total < _INFINITE:
        way = [sink]
        while way[-1] != source:
            way.append(came[way[-1]])
        pairs = list(zip(way[1:], way, strict=False))
        least = min(flow[a][b] for a, b in pairs)
        for a, b in pairs:
            flow[a][b] -= least
            flow[b][a] += least
        total += least
    return total


def _reached(flow: Sequence[Mapping[int, int]], source: int) -> dict[int, int]:
    """Nodes that there is room to, each with the one before it."""
    came = {source: source}
    wanted = deque([source])
    while wanted:
        a = wanted.popleft()
        for b, room in flow[a].items():
            if room > 0 and b not in came:
                came[b] = a
                wanted.append(b)
    return came
