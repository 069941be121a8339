"""Dynamic tensor rematerialization: no plan, but a rule of what to evict when memory runs out (Kirisame et al. 2020).

    work needs room  ->  evict the value with the least h  ...  work reads what is gone  ->  do its maker again, first

h_dtr      (its time + that of the evicted around it) / (bytes * seconds since its last use)
h_dtr_eq   the same, evicted values that touch being one heap that stays whole when a member comes back
h_lru      1 / seconds since its last use
h_msps     time to bring it back, with all that is gone before it, / bytes

PyTorch has no such runtime: this simulates one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dnnmem.estimator.errors import InfeasibleError, UsageError
from dnnmem.estimator.planners.graph_schedule import Schedule, closed, goals_of, trimmed
from dnnmem.estimator.planners.op_graph import Graph
from dnnmem.estimator.units import format_bytes

HEURISTICS = ("h_dtr", "h_dtr_eq", "h_lru", "h_msps")
"""Rules of what goes first."""
_THRASHING = 20
"""Times the work of the plain step after which a run is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a run did."""

    works: tuple[int, ...]
    """In order, with repetitions."""
    seconds: float
    """Of all of them."""
    peak_bytes: int
    """Most bytes at any moment."""
    evictions: int
    """Values that went before their time."""
    schedule: Schedule
    """What is kept from work to work, as a schedule that may do less."""


@dataclass(slots=True, eq=False)
class _Run:
    graph: Graph
    budget: float
    score: Callable[[_Run, int], float]
    makers: list[int]
    readers: list[list[int]]
    left: list[int]
    """Reads by the program that are still to come, by value."""
    live: set[int] = field(default_factory=set)
    used: int = 0
    peak: int = 0
    clock: float = 0.0
    touched: dict[int, float] = field(default_factory=dict)
    pinned: dict[int, int] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    """Evicted."""
    heap: dict[int, int] = field(default_factory=dict)
    """Of evicted values, for h_dtr_eq: a member of the same heap that is nearer its root."""
    times: dict[int, float] = field(default_factory=dict)
    """Of heaps, by root."""
    works: list[int] = field(default_factory=list)
    evictions: int = 0


def play(graph: Graph, budget_bytes: float, heuristic: str = "h_dtr") -> Played:
    """Do all works of `graph` in order within `budget_bytes`.

    Raises `InfeasibleError` where an op and what it reads do not fit, or where the same works come back for ever, and
    `UsageError` for an unknown heuristic.
    """
    if heuristic not in HEURISTICS:
        raise UsageError(f"DTR has no heuristic {heuristic!r}; it is one of {', '.join(HEURISTICS)}")
    goals = goals_of(graph)
    run = _Run(
        graph=graph, budget=budget_bytes, score=_SCORES[heuristic], makers=_first_makers(graph, goals),
        readers=graph.readers(), left=[0] * len(graph.nbytes),
    )  # fmt: skip
    for k in goals:
        for v in set(graph.works[k].reads):
            run.left[v] += 1
    limit = _THRASHING * sum(graph.works[k].seconds for k in goals)
    held = []
    for k in goals:
        held.append(frozenset(run.live))
        _do(run, k, limit)
        for v in set(graph.works[k].reads):
            run.left[v] -= 1
        for v in {*graph.works[k].reads, *graph.works[k].makes}:
            if not run.left[v] and v not in graph.stays and v in run.live:
                _drop(run, v)
    return Played(
        works=tuple(run.works), seconds=sum(graph.works[k].seconds for k in run.works), peak_bytes=run.peak,
        evictions=run.evictions, schedule=trimmed(graph, closed(graph, held)),
    )  # fmt: skip


def _first_makers(graph: Graph, goals: tuple[int, ...]) -> list[int]:
    """The work of the program that makes each value."""
    found = [-1] * len(graph.nbytes)
    for k in goals:
        for v in graph.works[k].makes:
            found[v] = k
    return found


def _do(run: _Run, k: int, limit: float) -> None:
    """Bring back what a work reads, make room, and do it."""
    stack = [k]
    while stack:
        now = stack[-1]
        work = run.graph.works[now]
        missing = [v for v in work.reads if v not in run.live]
        if missing:
            _pin(run, [v for v in work.reads if v in run.live])
            stack.append(run.makers[missing[0]])
            _give_up(run, limit, len(stack))
            continue
        stack.pop()
        _pin(run, work.reads)
        _execute(run, now, again=now != k)
        run.pinned.clear()
        for waiting in stack:  # what those that wait have at hand stays
            _pin(run, [v for v in run.graph.works[waiting].reads if v in run.live])
    run.pinned.clear()


def _pin(run: _Run, values: tuple[int, ...] | list[int]) -> None:
    run.pinned.update(dict.fromkeys(values, 1))


def _give_up(run: _Run, limit: float, depth: int) -> None:
    if run.clock > limit or depth > len(run.graph.works):
        raise InfeasibleError(
            f"DTR does the same work over and over within {format_bytes(int(run.budget))}: more than {_THRASHING} "
            "times the plain step's",
            needed_bytes=int(run.budget) + 1,
            hint="a larger budget",
        )


def _execute(run: _Run, k: int, *, again: bool) -> None:
    work = run.graph.works[k]
    new = [v for v in work.makes if v not in run.live]
    need = sum(run.graph.nbytes[v] for v in new) + work.extra_bytes
    while run.used + need > run.budget:
        able = [v for v in run.live if v not in run.pinned and run.graph.nbytes[v] and _can_return(run, v)]
        if not able:
            raise InfeasibleError(
                f"DTR has nothing left to evict: op {k} ({work.name}) and what waits for it need "
                f"{format_bytes(run.used + need)} of {format_bytes(int(run.budget))}",
                needed_bytes=run.used + need,
                hint="a larger budget",
            )
        v = min(able, key=lambda v: (run.score(run, v), v))
        _drop(run, v)
        run.evictions += 1
        run.gone.add(v)
        _join(run, v)
    run.peak = max(run.peak, run.used + need)
    for v in new:
        run.live.add(v)
        run.used += run.graph.nbytes[v]
        run.gone.discard(v)
        _leave(run, v)
    run.clock += work.seconds
    run.works.append(k)
    for v in {*work.reads, *work.makes}:
        run.touched[v] = run.clock
    for v in work.ends:
        if v in run.live:
            _drop(run, v)
    if again:
        _drop_dead(run, work.makes)


def _drop_dead(run: _Run, made: tuple[int, ...]) -> None:
    """Of what was done again, the program waits for some; the rest goes if nothing that is gone needs it."""
    for v in made:
        if v in run.live and not run.left[v] and not run.readers[v]:
            _drop(run, v)


def _can_return(run: _Run, v: int) -> bool:
    return not run.graph.works[run.makers[v]].backward and v not in run.graph.stays


def _drop(run: _Run, v: int) -> None:
    run.live.remove(v)
    run.used -= run.graph.nbytes[v]


def _above(run: _Run, v: int) -> list[int]:
    """Evicted values that `v` is made of."""
    return [r for r in run.graph.works[run.makers[v]].reads if r in run.gone]


def _below(run: _Run, v: int) -> list[int]:
    """Evicted values that are made of `v`."""
    return [m for k in run.readers[v] for m in run.graph.works[k].makes if m in run.gone]


def _time(run: _Run, v: int) -> float:
    return run.graph.works[run.makers[v]].seconds


def _stale(run: _Run, v: int) -> float:
    return run.clock - run.touched[v] + 1e-9


def _h_dtr(run: _Run, v: int) -> float:
    """The evicted neighbourhood: all evicted that it would have to be made of, and that would have to wait for it."""
    up, down = _reach(v, lambda x: _above(run, x)), _reach(v, lambda x: _below(run, x))
    return (_time(run, v) + sum(_time(run, x) for x in up | down)) / (run.graph.nbytes[v] * _stale(run, v))


def _reach(v: int, near: Callable[[int], list[int]]) -> set[int]:
    found: set[int] = set()
    wanted = near(v)
    while wanted:
        x = wanted.pop()
        if x not in found:
            found.add(x)
            wanted += near(x)
    return found


def _h_dtr_eq(run: _Run, v: int) -> float:
    roots = {_root(run, x) for x in _above(run, v) + _below(run, v)}
    return (_time(run, v) + sum(run.times[x] for x in roots)) / (run.graph.nbytes[v] * _stale(run, v))


def _h_lru(run: _Run, v: int) -> float:
    return 1 / _stale(run, v)


def _h_msps(run: _Run, v: int) -> float:
    up = _reach(v, lambda x: _above(run, x))
    return (_time(run, v) + sum(_time(run, x) for x in up)) / run.graph.nbytes[v]


_SCORES = {"h_dtr": _h_dtr, "h_dtr_eq": _h_dtr_eq, "h_lru": _h_lru, "h_msps": _h_msps}


def _root(run: _Run, v: int) -> int:
    while run.heap[v] != v:
        run.heap[v] = run.heap[run.heap[v]]
        v = run.heap[v]
    return v


def _join(run: _Run, v: int) -> None:
    """An evicted value joins the heaps that it touches."""
    run.heap[v], run.times[v] = v, _time(run, v)
    for x in _above(run, v) + _below(run, v):
        a, b = _root(run, v), _root(run, x)
        if a != b:
            run.heap[a] = b
            run.times[b] += run.times[a]


def _leave(run: _Run, v: int) -> None:
    """A value that is back takes its own time out of its heap; the heap stays whole, which is the approximation."""
    if v in run.heap:
        run.times[_root(run, v)] -= _time(run, v)
