"""A schedule of a graph's works, stage by stage: what it costs, what it needs, and how it is drawn.

    stage t    values at hand when it begins  +  works done in it, in the graph's order  ->  values at hand afterwards

Each stage ends with a work that is done for the first time; a value goes after the last work of its stage that reads
it unless the next stage begins with it (Jain et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnmem.estimator.planners.op_graph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a schedule."""

    held: frozenset[int]
    """Values at hand when it begins."""
    done: tuple[int, ...]
    """Works, in order."""


Schedule = tuple[Stage, ...]


def goals_of(graph: Graph) -> tuple[int, ...]:
    """The work that ends each stage."""
    return graph.goals or tuple(range(len(graph.works)))


def seconds_of(graph: Graph, schedule: Schedule) -> float:
    """Time of all works."""
    return sum(graph.works[k].seconds for stage in schedule for k in stage.done)


def peak_of(graph: Graph, schedule: Schedule) -> int:
    """Most bytes at any moment. Raises `ValueError` for a schedule that reads what is not there."""
    peak = 0
    for t, stage in enumerate(schedule):
        after = schedule[t + 1].held if t + 1 < len(schedule) else graph.stays
        live = set(stage.held)
        peak = max(peak, _bytes(graph, live))
        for n, k in enumerate(stage.done):
            work = graph.works[k]
            if not live.issuperset(work.reads):
                raise ValueError(f"stage {t} does work {k} ({work.name}), but {set(work.reads) - live} are not there")
            live.update(work.makes)
            peak = max(peak, _bytes(graph, live) + work.extra_bytes)
            live &= after | _read_before_made(graph, stage.done[n + 1 :])
            live.difference_update(work.ends)
        if not after <= live:
            raise ValueError(f"stage {t + 1} begins with {set(after) - live}, which are not there")
    return peak


def plain(graph: Graph) -> Schedule:
    """Everything once, and kept until it is read for the last time."""
    goals = goals_of(graph)
    last = {v: k for k in goals for v in graph.works[k].reads}
    stages = []
    live: set[int] = set()
    for t, k in enumerate(goals):
        stages.append(Stage(held=frozenset(live), done=(k,)))
        live = (live | set(graph.works[k].makes)) - set(graph.works[k].ends)
        live = {v for v in live if v in graph.stays or last.get(v, -1) in goals[t + 1 :]}
    return tuple(stages)


def closed(graph: Graph, held: Sequence[frozenset[int]]) -> Schedule:
    """The schedule whose stages begin with what of `held` can be there, and do no more than they must."""
    goals, makers = goals_of(graph), graph.makers()
    stages: list[Stage] = []
    there: frozenset[int] = frozenset()
    for t, goal in enumerate(goals):
        after = (held[t + 1] | graph.stays) if t + 1 < len(goals) else graph.stays
        done = _done(graph, makers, goal, there, after)
        stages.append(Stage(held=there, done=done))
        ended = {v for k in done for v in graph.works[k].ends}
        there = after & (there | {v for k in done for v in graph.works[k].makes}) - ended
    return tuple(stages)


def _done(
    graph: Graph, makers: Sequence[Sequence[int]], goal: int, there: frozenset[int], after: frozenset[int]
) -> tuple[int, ...]:
    """The works of a stage: its goal, and whatever makes what is read or kept and not there."""
    works, done = graph.works, {goal}
    wanted = [v for v in (*works[goal].reads, *after) if v not in there]
    while wanted:
        v = wanted.pop()
        ways = [k for k in makers[v] if k <= goal]
        if ways and not done.intersection(ways):
            k = min(ways, key=lambda k: len(works[k].makes))
            done.add(k)
            wanted += [r for r in works[k].reads if r not in there]
    for k in sorted(done - {goal}):  # another makes all that this one does
        if any(set(works[k].makes) < set(works[j].makes) for j in done):
            done.remove(k)
    return tuple(sorted(done))


def schedule_of(graph: Graph, works: Sequence[int]) -> Schedule:
    """Works in the order in which they are done, as stages; a stage does each once, in the graph's order."""
    goals, makers = goals_of(graph), graph.makers()
    ends = [set(makers[graph.works[goal].makes[0]]) for goal in goals]
    parts: list[set[int]] = [set()]
    for k in works:
        parts[-1].add(k)
        if len(parts) <= len(ends) and k in ends[len(parts) - 1]:
            parts.append(set())
    held: frozenset[int] = graph.stays
    stages: list[Stage] = []
    for part in reversed(parts[: len(goals)]):
        done = tuple(sorted(part))
        made = {v for k in done for v in graph.works[k].makes}
        held = (held - made) | _read_before_made(graph, done)
        stages.append(Stage(held=held, done=done))
    return tuple(reversed(stages))


def trimmed(graph: Graph, schedule: Schedule) -> Schedule:
    """The same where nothing is at hand that is neither read in its stage nor kept for the next one."""
    after: frozenset[int] = graph.stays
    stages: list[Stage] = []
    for stage in reversed(schedule):
        after = stage.held & (after | _read_before_made(graph, stage.done) | graph.stays)
        stages.append(Stage(held=after, done=stage.done))
    return tuple(reversed(stages))


def drawn(graph: Graph, schedule: Schedule) -> str:
    """A line for each stage: what it does, what is done again in brackets."""
    seen: set[int] = set()
    lines = []
    for stage in schedule:
        words = []
        for k in stage.done:
            name = f"{graph.works[k].name}.{graph.works[k].number}"
            words.append(f"[{name}]" if k in seen else name)
            seen.add(k)
        lines.append(" ".join(words))
    return "\n".join(lines)


def _bytes(graph: Graph, values: set[int]) -> int:
    return sum(graph.nbytes[v] for v in values)


def _read_before_made(graph: Graph, works: Sequence[int]) -> set[int]:
    """Values that `works` read, and do not make themselves first."""
    made: set[int] = set()
    found: set[int] = set()
    for k in works:
        found |= set(graph.works[k].reads) - made
        made |= set(graph.works[k].makes)
    return found
