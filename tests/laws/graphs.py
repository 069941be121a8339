"""Small random graphs for planners, and their best schedules by trying all."""

from __future__ import annotations

import math
from itertools import chain, combinations

from hypothesis import strategies as st

from dnnmem.estimator.planners.graph_schedule import goals_of
from dnnmem.estimator.planners.op_graph import Graph, Work

SIZES = st.integers(1, 6)


@st.composite
def graphs(draw, *, most=3):
    """Forward works that read any earlier ones; backward works in the reverse order that read any of them."""
    count = draw(st.integers(1, most))
    works, nbytes = [], []
    for k in range(count):
        reads = tuple(v for v in range(k) if v == k - 1 or draw(st.booleans()))
        nbytes.append(draw(SIZES))
        works.append(
            Work(name="f", number=k, reads=reads, makes=(k,), seconds=float(draw(SIZES)), extra_bytes=draw(SIZES) % 3)
        )
    for k in reversed(range(count)):
        gradient = () if k == count - 1 else (len(nbytes) - 1,)
        reads = tuple(v for v in range(count) if draw(st.booleans()))
        nbytes.append(draw(SIZES))
        works.append(
            Work(name="b", number=k, reads=(*reads, *gradient), makes=(len(nbytes) - 1,), seconds=1.0, backward=True)
        )
    return Graph(works=tuple(works), nbytes=tuple(nbytes), stays=frozenset({len(nbytes) - 1}))


def subsets(values):
    values = sorted(values)
    return [frozenset(some) for some in chain.from_iterable(combinations(values, n) for n in range(len(values) + 1))]


def cheapest(graph, budget):
    """Least seconds of all schedules whose stages do each work at most once; infinite if none fits."""
    goals = goals_of(graph)
    best = {frozenset(): 0.0}
    for t, goal in enumerate(goals):
        found = {}
        last = t == len(goals) - 1
        again = [k for k in range(goal) if not graph.works[k].backward]
        for held, cost in best.items():
            for some in subsets(again):
                done = tuple(sorted({*some, goal}))
                made = {v for k in done for v in graph.works[k].makes}
                seconds = cost + sum(graph.works[k].seconds for k in done)
                for after in [graph.stays] if last else subsets(held | made):
                    if (last or not graph.stays & (held | made) - after) and fits(graph, held, done, after, budget):
                        found[after] = min(found.get(after, math.inf), seconds)
        best = found
    return min(best.values(), default=math.inf)


def fits(graph, held, done, after, budget):
    """True if a stage can be done within the budget."""
    size = lambda values: sum(graph.nbytes[v] for v in values)  # noqa: E731
    live = set(held)
    if size(live) > budget:
        return False
    for n, k in enumerate(done):
        work = graph.works[k]
        if not live.issuperset(work.reads):
            return False
        live |= set(work.makes)
        if size(live) + work.extra_bytes > budget:
            return False
        later = {v for j in done[n + 1 :] for v in graph.works[j].reads}
        live &= set(after) | later
    return after <= live
