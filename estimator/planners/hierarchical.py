"""A plan in two levels: ways to run a block again, found once for all blocks that are alike, then a way for each block.

    block graph --knapsack, cut, Checkmate, ...--> ways: (bytes kept, seconds again), ...      once for equal blocks
    chain of blocks --dynamic program--> 0-5: all   6-20: addmm.0.2,attention   21-31: input   within the budget

D(s, m) is the least time that stages 0..s take again with m bytes kept; a way of block s is open to it where what the
stages before it keep, its own peak and what those behind it left fit together. (HiRemate and Rockmate, of Rotor's
authors, divide the work so, with an integer program in the block.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import Rule, keep_text
from dnnmem.estimator.passes.remat import watched_blocks
from dnnmem.estimator.plan import Remat
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.min_cut import Kept, knapsack
from dnnmem.estimator.planners.op_graph import Graph, graph_of
from dnnmem.estimator.planners.problem import Cost, Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner

_SLOTS = 2000
"""Parts of a budget; bytes are rounded to the nearest, as what comes out is held against the step itself."""
_PLANS = 64
"""Budgets that are planned for, evenly from the least to all."""
_WORTH = 0.005
"""Share of a block's forward pass: ops that take less are not named, so that rules stay readable."""
_DEEP = 32
"""Blocks that are alike, from which on `auto` plans one for all."""
_WAYS = 32
"""Ways of a block that are followed, at most; they spread over its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of the model."""

    number: int
    """Over the model."""
    graph: Graph
    """Of its ops; blocks that are alike share one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run a stage."""

    kept: Kept | None
    """What stays of a block that runs again; None: all stays."""
    seconds: float
    """Of what runs again."""
    saved_bytes: int
    """What it leaves for its backward pass, and its output."""
    peak_bytes: int
    """Most of its own that is alive at once, in either pass."""


WaysOf = Callable[[Graph], Sequence[Kept]]
"""Finds sets of ops of a block that may be kept."""


def blocks_of(problem: Problem) -> list[Block]:
    """The blocks of a problem's step. Raises `UnsupportedError` where it has none."""
    if "blocks" not in problem.made:
        trace, regions = watched_blocks(problem.trace)
        if not regions:
            raise UnsupportedError(
                f"{problem.recorded.origin.target or 'the step'} has no blocks whose ops could be planned: they lie in "
                "a list (ModuleList, Sequential)"
            )
        seconds, known = problem.seconds(), dict[object, Graph]()
        if len(trace.ops) != len(seconds):
            raise UnsupportedError("a step that is watched has other ops than the step itself")
        found = []
        for number, forward, backward in regions:
            graph = graph_of(trace, seconds, {*forward, *backward})
            graph = known.setdefault(_shape(graph), graph)
            found.append(Block(number=number, graph=graph))
        problem.made["blocks"] = found
    blocks = problem.made["blocks"]
    assert isinstance(blocks, list)  # noqa: S101  (for mypy)
    return blocks


def find_with(problem: Problem, ways: WaysOf) -> Found:
    """The fastest plan whose blocks each keep what one of their `ways` does, or all, or their input."""
    blocks, chain = {block.number: block for block in blocks_of(problem)}, problem.chain()
    sets: dict[int, list[Kept]] = {}
    for block in blocks.values():
        if id(block.graph) not in sets:
            sets[id(block.graph)] = _thinned(list(ways(block.graph)))
    choices = [_ways(chain, s, blocks, sets) for s in range(len(chain.stages))]

    least = chain_bytes(chain, [min(ways, key=lambda way: way.saved_bytes) for ways in choices])
    most = chain_bytes(chain, [ways[0] for ways in choices])
    aims = (least + (most - least) * k / (_PLANS - 1) for k in range(_PLANS))
    plans: dict[str, Found] = {}
    for aim in aims:
        if (chosen := best(chain, choices, aim)) is not None:
            found = _found(problem, blocks, chosen)
            plans.setdefault(found.remat.keep, found)
    return cheapest(problem, plans.values(), what="rematerialization by op")


def find(problem: Problem) -> Found:
    """Ways by knapsack."""
    return find_with(problem, partial(knapsack, worth=_WORTH))


def best(chain: Chain, choices: Sequence[Sequence[Way]], budget_bytes: float) -> list[Way] | None:
    """The ways of least time within `budget_bytes` above what lives before the step; None if nothing fits."""
    if budget_bytes <= 0:
        return None
    slot = budget_bytes / _SLOTS
    lefts = [sum(stage.left_bytes for stage in chain.stages[s + 1 :]) for s in range(len(chain.stages))]
    times = np.full(_SLOTS + 1, np.inf)
    times[0] = 0.0
    picks: list[np.ndarray] = []
    for s, ways in enumerate(choices):
        found, pick = np.full(_SLOTS + 1, np.inf), np.full(_SLOTS + 1, -1, dtype=np.int32)
        for n, way in enumerate(ways):
            most = round((budget_bytes - way.peak_bytes - lefts[s]) / slot)  # kept before it, in slots
            more = round(way.saved_bytes / slot)
            last = min(most, _SLOTS - more)
            if last < 0:
                continue
            cost = times[: last + 1] + way.seconds
            better = cost < found[more : more + last + 1]
            found[more : more + last + 1][better] = cost[better]
            pick[more : more + last + 1][better] = n
        times = found
        picks.append(pick)
    if not np.isfinite(times).any():
        return None
    m, chosen = int(np.argmin(times)), list[Way]()
    for s in range(len(choices) - 1, -1, -1):
        way = choices[s][int(picks[s][m])]
        chosen.append(way)
        m -= round(way.saved_bytes / slot)
    return chosen[::-1]


def _ways(chain: Chain, s: int, blocks: dict[int, Block], sets: dict[int, list[Kept]]) -> list[Way]:
    stage = chain.stages[s]
    most = max(stage.forward_bytes, stage.backward_bytes)
    whole = Way(kept=None, seconds=0.0, saved_bytes=stage.saved_bytes, peak_bytes=most)
    block = blocks.get(stage.block) if stage.block is not None else None
    if block is None:
        return [whole]
    out = chain.stages[s + 1].input_bytes if s + 1 < len(chain.stages) else 0
    found = []
    for one in sets[id(block.graph)]:
        unread = sum(
            block.graph.nbytes[v] for k in one.works for v in block.graph.works[k].makes
            if v not in block.graph.needed()
        )  # fmt: skip
        again = stage.backward_bytes + unread
        peak = max(stage.light_bytes + one.saved_bytes, again, stage.gradient_bytes + stage.forward_bytes + unread)
        found.append(Way(kept=one, seconds=one.seconds, saved_bytes=one.saved_bytes + out, peak_bytes=peak))
    return [whole, *(way for way in found if way.saved_bytes < whole.saved_bytes)]


def chain_bytes(chain: Chain, chosen: Sequence[Way]) -> int:
    """The peak above what lives before the step, of stages that are run so."""
    peak = kept = 0
    left = sum(stage.left_bytes for stage in chain.stages)
    for stage, way in zip(chain.stages, chosen, strict=True):
        left -= stage.left_bytes
        peak = max(peak, kept + way.peak_bytes + left)
        kept += way.saved_bytes
    return peak


def _found(problem: Problem, blocks: dict[int, Block], chosen: Sequence[Way]) -> Found:
    chain = problem.chain()
    expected = Cost(
        peak_bytes=chain.base_bytes + chain_bytes(chain, chosen),
        seconds=problem.plain().seconds + sum(way.seconds for way in chosen),
    )  # fmt: skip
    rules: dict[object, Rule] = {}
    for stage, way in zip(chain.stages, chosen, strict=True):
        if stage.block is None or way.kept is None:
            continue
        ops = named(blocks[stage.block].graph, way.kept.works)
        key = tuple(sorted(ops.items()))
        runs = [*(rules[key].blocks if key in rules else ()), (stage.block, stage.block)]
        if len(runs) > 1 and runs[-2][1] == stage.block - 1:
            runs[-2:] = [(runs[-2][0], stage.block)]
        rules[key] = Rule(blocks=tuple(runs), ops=ops)
    remat = Remat(policy="ops", keep=keep_text([*rules.values()])) if rules else Remat()
    return Found(remat=remat, expected=expected)


def named(graph: Graph, works: frozenset[int]) -> dict[str, tuple[int, ...]]:
    """Works as a rule's ops; all of a name without their numbers."""
    found: dict[str, list[int]] = {}
    for k in sorted(works):
        found.setdefault(graph.works[k].name, []).append(graph.works[k].number)
    count = {name: sum(w.name == name for w in graph.works[: graph.turn]) for name in found}
    return {name: () if len(numbers) == count[name] else tuple(numbers) for name, numbers in found.items()}


def _thinned(sets: list[Kept]) -> list[Kept]:
    """As many as are followed, evenly over their bytes."""
    if len(sets) <= _WAYS:
        return sets
    least, most = sets[0].saved_bytes, sets[-1].saved_bytes
    bins = {min((one.saved_bytes - least) * _WAYS // max(most - least, 1), _WAYS - 1): one for one in reversed(sets)}
    return sorted(bins.values(), key=lambda one: one.saved_bytes)


def _shape(graph: Graph) -> tuple[object, ...]:
    """What graphs agree in that are planned alike; times by the clock of one block stand for all."""
    works = tuple((w.name, w.number, w.reads, w.makes, w.extra_bytes, w.backward, w.keeps) for w in graph.works)
    return (works, graph.nbytes, graph.stays)


def suits(problem: Problem) -> str:
    """For deep stacks of blocks that are alike: one block is planned for all of them."""
    try:
        alike = Counter(id(block.graph) for block in blocks_of(problem))
        problem.chain()
    except UnsupportedError:
        return ""
    most = max(alike.values(), default=0)
    return f"{most} of its {alike.total()} blocks are alike: one is planned for all" if most >= _DEEP else ""


PLANNER = Planner(
    name="hierarchical", words="which ops of each block to keep, by knapsack in it and exactly over blocks",
    needs="a chain of blocks", find=find, suits=suits,
)  # fmt: skip
