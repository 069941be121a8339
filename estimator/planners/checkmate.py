"""Checkmate: the cheapest schedule of a graph's works within a budget, by integer programming (Jain et al. 2020).

    R[t, k]  work k is done in stage t        S[t, v]  value v is at hand when stage t begins
    U[t, k]  bytes after work k made its own  F[t, k, v]  value v goes after work k

Stage t ends with the t-th work that is done for the first time. Unlike the paper a work may make several values, and
two works may make the same one: a block is run to keep all, or its output alone. The search begins with the better of
a rounded solution of the linear relaxation and DTR's run, some of whose stages were planned again at a time. Where time
runs out, the best schedule by then counts; the gap says how much better one could be.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.planners.dtr import HEURISTICS, play
from dnnmem.estimator.planners.graph_schedule import (
    Schedule,
    Stage,
    closed,
    goals_of,
    peak_of,
    plain,
    seconds_of,
    trimmed,
)
from dnnmem.estimator.planners.milp import Program, Solved, solve
from dnnmem.estimator.planners.op_graph import Graph
from dnnmem.estimator.units import format_bytes

_THRESHOLDS = (0.5, 0.3, 0.7, 0.1, 0.9)
"""Shares from which on a relaxed S counts as 1; the paper takes 0.5."""
_TIGHTER = (1.0, 0.97, 0.94, 0.9, 0.8, 0.7)
"""Shares of the budget that the relaxation is given: rounding goes above it."""


_WINDOW = 12
"""Stages that are planned again together, to improve a schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Checkmate found."""

    schedule: Schedule
    """What is done when."""
    seconds: float
    """Its time."""
    peak_bytes: int
    """What it needs."""
    bound_seconds: float
    """No schedule of this form takes less."""
    optimal: bool
    """True if this one takes no more than that, within 1e-6."""

    @property
    def gap(self) -> float:
        """Share of its time by which the best schedule may be faster."""
        return 0.0 if self.optimal else max(0.0, 1 - self.bound_seconds / self.seconds)


def schedule(
    graph: Graph, budget_bytes: float, time_limit_seconds: float = 60.0, *, start: Schedule | None = None
) -> Answer:
    """The fastest schedule of `graph` within `budget_bytes`, or the best that is found in time.

    Args: `start` is a schedule that another planner found; what comes out takes no more time than it.
    Raises `InfeasibleError` where there is none, or none was found; `UnsupportedError` where no solver is installed.
    """
    whole = plain(graph)
    if (peak := peak_of(graph, whole)) <= budget_bytes:
        seconds = seconds_of(graph, whole)
        return Answer(schedule=whole, seconds=seconds, peak_bytes=peak, bound_seconds=seconds, optimal=True)
    least = max(sum(graph.nbytes[v] for v in {*w.reads, *w.makes}) + w.extra_bytes for w in graph.works)
    if least > budget_bytes:
        raise _infeasible(budget_bytes, least, "one of its ops alone needs that")
    end = time.monotonic() + time_limit_seconds
    model = _Model(graph, budget_bytes)
    known = [s for s in (start, _evicted(graph, budget_bytes), _rounded(model, end)) if s is not None]
    known = [s for s in known if peak_of(graph, s) <= budget_bytes]
    first = min(known, key=lambda s: seconds_of(graph, s), default=None)
    first = first and _improved(model, first, end)
    begin = None if first is None else model.values_of(first)
    solved = solve(model.program, max(end - time.monotonic(), 0.1), start=begin)
    found = [s for s in (model.read(solved), first) if s is not None and peak_of(graph, s) <= budget_bytes]
    if not found:
        raise _infeasible(budget_bytes, least, "none exists" if solved.infeasible else "none was found in time")
    best = min(found, key=lambda s: seconds_of(graph, s))
    seconds, bound = seconds_of(graph, best), max(solved.bound * model.unit, seconds_of(graph, whole))
    return Answer(
        schedule=best, seconds=seconds, peak_bytes=peak_of(graph, best), bound_seconds=min(bound, seconds),
        optimal=solved.optimal and seconds <= bound * (1 + 1e-5),
    )  # fmt: skip


def _infeasible(budget_bytes: float, least: int, why: str) -> InfeasibleError:
    return InfeasibleError(
        f"no schedule within {format_bytes(int(budget_bytes))} above what lives before the step: {why}",
        needed_bytes=max(int(least), int(budget_bytes) + 1),
        hint="a larger budget, or --time-limit",
    )


def _evicted(graph: Graph, budget_bytes: float) -> Schedule | None:
    """The fastest of DTR's runs that fits as a schedule."""
    found = []
    for heuristic in HEURISTICS:
        for share in _TIGHTER:
            with suppress(InfeasibleError):
                run = play(graph, share * budget_bytes, heuristic).schedule
                if peak_of(graph, run) <= budget_bytes:
                    found.append(run)
                    break
    return min(found, key=lambda s: seconds_of(graph, s), default=None)


def _rounded(model: _Model, end: float) -> Schedule | None:
    """The fastest schedule within the budget that comes of rounding relaxed solutions, at most half of the time."""
    half = (time.monotonic() + end) / 2
    best: tuple[float, Schedule] | None = None
    for share in _TIGHTER:
        left = half - time.monotonic()
        if left <= 0 or (best is not None and share < 0.9):
            break
        tighter = model if share == 1.0 else _Model(model.graph, model.budget * share)
        relaxed = solve(tighter.program, left, relaxed=True)
        if relaxed.values is None:
            break
        for threshold in _THRESHOLDS:
            found = closed(model.graph, model.held(relaxed.values, threshold))
            if peak_of(model.graph, found) <= model.budget:
                cost = seconds_of(model.graph, found)
                best = min(best, (cost, found), key=lambda b: b[0]) if best else (cost, found)
    return best[1] if best else None


def _improved(model: _Model, found: Schedule, end: float) -> Schedule:
    """A schedule whose stages were planned again, some at a time, at most for a quarter of the time."""
    graph, limit = model.graph, time.monotonic() + (end - time.monotonic()) / 4
    best = closed(graph, [stage.held for stage in trimmed(graph, found)])
    best = best if peak_of(graph, best) <= model.budget else found
    for first in range(len(best) - _WINDOW, -_WINDOW // 2, -_WINDOW // 2):
        left = limit - time.monotonic()
        if left <= 0:
            break
        other = model.within(best, max(first, 0), first + _WINDOW, left)
        if other is not None and seconds_of(graph, other) < seconds_of(graph, best):
            best = other
    return min(best, found, key=lambda s: seconds_of(graph, s))


class _Model:
    """The program of a graph and a budget."""

    def __init__(self, graph: Graph, budget: float) -> None:
        self.graph, self.budget = graph, budget
        self.program = Program()
        self.goals = goals_of(graph)
        self.makers, self.readers = graph.makers(), graph.readers()
        self.unit = max((w.seconds for w in graph.works), default=1.0) or 1.0
        self.scale = max(budget, 1.0)
        self.turn = next((t for t, k in enumerate(self.goals) if graph.works[k].backward), len(self.goals))
        self.r: dict[tuple[int, int], int] = {}
        self.s: dict[tuple[int, int], int] = {}
        for t in range(len(self.goals)):
            self._add_stage(t)
        for t in range(len(self.goals)):
            self._add_supply(t)
            self._add_memory(t)
            self._add_purpose(t)

    def _add_stage(self, t: int) -> None:
        """Variables of what is done, and of what is at hand."""
        graph, goal = self.graph, self.goals[t]
        earlier = self.goals[t - 1] if t else -1
        for k in range(goal + 1):
            work = graph.works[k]
            if not work.backward or k == goal:
                must = k == goal and (work.backward or all(len(self.makers[v]) == 1 for v in work.makes))
                cost = work.seconds / self.unit
                self.r[t, k] = self.program.variable(cost, lower=float(must), whole=True)
        for v, makers in enumerate(self.makers):
            if makers and makers[0] <= earlier:
                stays, makes = v in graph.stays, graph.works[makers[0]]
                lost = t >= self.turn and not makes.keeps
                self.s[t, v] = self.program.variable(lower=float(stays), upper=float(not lost or stays), whole=True)

    def _add_supply(self, t: int) -> None:
        """What is read is there, or is made; and so is what is at hand afterwards, and the goal."""
        add = self.program.row
        for k in (k for at, k in self.r if at == t):
            for v in set(self.graph.works[k].reads):
                add({**self._made(t, v, k), self.r[t, k]: -1.0}, lower=0.0)
            for v in self.graph.works[k].ends:
                if (t + 1, v) in self.s:
                    add({self.r[t, k]: 1.0, self.s[t + 1, v]: 1.0}, upper=1.0)
        for v in (v for at, v in self.s if at == t + 1):
            add({**self._made(t, v, len(self.graph.works)), self.s[t + 1, v]: -1.0}, lower=0.0)
        first = self.graph.works[self.goals[t]].makes[:1]
        for v in first:
            add({self.r[t, k]: 1.0 for k in self.makers[v] if (t, k) in self.r}, lower=1.0)

    def _add_purpose(self, t: int) -> None:
        """What is made again is not at hand, and serves, as what is at hand does: a fast schedule has nothing else."""
        add, graph, goal = self.program.row, self.graph, self.goals[t]
        ends = {k for v in graph.works[goal].makes[:1] for k in self.makers[v]}
        for k in (k for at, k in self.r if at == t and k not in ends):
            there = [self.s[t, v] for v in graph.works[k].makes if (t, v) in self.s]
            if len(there) == len(graph.works[k].makes):
                add({self.r[t, k]: 1.0, **dict.fromkeys(there, 1.0)}, upper=float(len(there)))
            add({**self._serving(t, graph.works[k].makes, k), self.r[t, k]: -1.0}, lower=0.0)
        for v in (v for at, v in self.s if at == t and v not in graph.stays):
            add({**self._serving(t, (v,), -1), self.s[t, v]: -1.0}, lower=0.0)

    def _serving(self, t: int, values: Sequence[int], after: int) -> dict[int, float]:
        """Variables of what reads values in stage t behind a work, or keeps them for the next."""
        reads = {self.r[t, j]: 1.0 for v in values for j in self.readers[v] if j > after and (t, j) in self.r}
        return {**reads, **{self.s[t + 1, v]: 1.0 for v in values if (t + 1, v) in self.s}}

    def _made(self, t: int, v: int, before: int) -> dict[int, float]:
        """Variables of how a value comes to be there in stage t, before a work."""
        terms = {self.r[t, m]: 1.0 for m in self.makers[v] if m < before and (t, m) in self.r}
        return {**terms, self.s[t, v]: 1.0} if (t, v) in self.s else terms

    def _add_memory(self, t: int) -> None:
        add, graph, size = self.program.row, self.graph, self.scale
        here = [k for at, k in self.r if at == t]
        before: dict[int, float] = {s: graph.nbytes[v] / size for (at, v), s in self.s.items() if at == t}
        add(dict(before), upper=self.budget / size)
        for k in here:
            work, run = graph.works[k], self.r[t, k]
            makes = sum(graph.nbytes[v] for v in work.makes) / size
            above = max(0.0, -work.extra_bytes / size)
            used = self.program.variable(upper=self.budget / size + above)
            add({used: 1.0, run: -makes, **{v: -c for v, c in before.items()}}, lower=0.0, upper=0.0)
            if work.extra_bytes:
                add({used: 1.0, run: work.extra_bytes / size}, upper=self.budget / size)
            before = {used: 1.0}
            for v in sorted({*work.reads, *work.makes}):
                if graph.nbytes[v] and v not in graph.stays:
                    before[self._freed(t, k, v)] = -graph.nbytes[v] / size

    def _freed(self, t: int, k: int, v: int) -> int:
        """The variable of a value that goes after a work: one that is done, and that no later one needs."""
        gone = self.program.variable()
        self.program.row({gone: 1.0, self.r[t, k]: -1.0}, upper=0.0)
        if (t + 1, v) in self.s:
            self.program.row({gone: 1.0, self.s[t + 1, v]: 1.0}, upper=1.0)
        for j in self.readers[v]:
            if j > k and (t, j) in self.r:
                self.program.row({gone: 1.0, self.r[t, j]: 1.0}, upper=1.0)
        return gone

    def held(self, values: np.ndarray, threshold: float) -> list[frozenset[int]]:
        """What stages begin with, where S counts from a threshold on."""
        return [
            frozenset(v for (at, v), s in self.s.items() if at == t and values[s] >= threshold)
            for t in range(len(self.goals))
        ]

    def read(self, solved: Solved) -> Schedule | None:
        """The schedule of a solution."""
        if solved.values is None:
            return None
        held = self.held(solved.values, 0.5)
        return tuple(
            Stage(held=held[t], done=tuple(k for at, k in self.r if at == t and solved.values[self.r[at, k]] > 0.5))
            for t in range(len(self.goals))
        )

    def within(self, found: Schedule, begin: int, end: int, time_limit_seconds: float) -> Schedule | None:
        """The fastest schedule that differs from one in the stages `begin` to `end` alone; None if none is found."""
        program, known = self.program, self.values_of(found)
        lower, upper = [*program.lower], [*program.upper]
        fixed = [r for (t, _), r in self.r.items() if not begin <= t < end]
        for variable in (*fixed, *(s for (t, _), s in self.s.items() if not begin < t < end)):
            program.lower[variable] = program.upper[variable] = known[variable]
        solved = solve(program, time_limit_seconds, start=known)
        program.lower, program.upper = lower, upper
        other = self.read(solved)
        return other if other is not None and peak_of(self.graph, other) <= self.budget else None

    def values_of(self, found: Schedule) -> dict[int, float]:
        """A schedule as a part of a solution to begin with: what is done and what is at hand."""
        done = {r: float(k in found[t].done) for (t, k), r in self.r.items()}
        return {**done, **{s: float(v in found[t].held) for (t, v), s in self.s.items()}}
