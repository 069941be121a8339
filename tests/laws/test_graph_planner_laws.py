"""Checkmate is brute force and beats Rotor; knapsacks, cuts, lower sets and splits are the best there are."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.errors import InfeasibleError, UnsupportedError, UsageError
from dnnmem.estimator.planners import feng_huang, kusumoto, milp
from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.planners.checkmate import schedule
from dnnmem.estimator.planners.dtr import HEURISTICS, play
from dnnmem.estimator.planners.graph_schedule import peak_of, plain, seconds_of
from dnnmem.estimator.planners.hierarchical import Way, best, chain_bytes
from dnnmem.estimator.planners.min_cut import cut, kept, knapsack
from dnnmem.estimator.planners.op_graph import Graph, Work, graph_of_chain
from dnnmem.estimator.planners.rotor import solve
from tests.laws.graphs import cheapest, graphs, subsets
from tests.laws.test_planner_laws import chains
from tests.laws.test_planner_laws import play as play_chain

solver = pytest.mark.skipif(not milp.available(), reason="no HiGHS here: pip install 'dnnmem[plan]'")
SHARES = (0.35, 0.5, 0.65, 0.8, 1.0)


def budgets(graph):
    return [share * peak_of(graph, plain(graph)) for share in SHARES]


@solver
@given(graphs())
@settings(max_examples=25, deadline=None)
def test_checkmate_is_brute_force(graph):
    for budget in budgets(graph):
        # GIVEN the least time of all schedules within a budget
        best = cheapest(graph, budget)
        # THEN Checkmate takes it, within the budget, or says that there is none
        if best == math.inf:
            with pytest.raises(InfeasibleError):
                schedule(graph, budget)
            continue
        answer = schedule(graph, budget)
        assert answer.optimal
        assert answer.seconds == seconds_of(graph, answer.schedule) == pytest.approx(best)
        assert answer.peak_bytes == peak_of(graph, answer.schedule) <= budget


def consistent(chain):
    """A chain whose numbers could be a step's: what is saved has the output in it, peaks what is alive."""
    stages = []
    last = len(chain.stages) - 1
    for s, stage in enumerate(chain.stages):
        out = chain.stages[s + 1].input_bytes if s < last else 0
        saved = max(stage.saved_bytes, out)
        coming = stage.gradient_bytes if s < last else 0
        going = chain.stages[s - 1].gradient_bytes if s else 0
        backward = saved + coming + going + stage.left_bytes + stage.backward_bytes - stage.saved_bytes
        stages.append(
            replace(
                stage, saved_bytes=saved, gradient_bytes=coming, light_bytes=max(stage.light_bytes, out),
                forward_bytes=saved + stage.forward_bytes - stage.saved_bytes, backward_bytes=backward,
            )
        )  # fmt: skip
    return replace(chain, stages=tuple(stages))


@solver
@given(chains(most=4).map(consistent))
@settings(max_examples=15, deadline=None)
def test_checkmate_costs_no_more_than_rotor(chain):
    # GIVEN a chain, and Rotor's least time for each budget
    graph, most = graph_of_chain(chain), play_chain(chain, ())[1]
    table = solve(chain, most, slot_bytes=1)
    for budget in sorted({int(share * most) for share in SHARES}):
        rotor = table.seconds_at(budget)
        if rotor < math.inf:
            # THEN Checkmate, which may do more, takes no more time
            answer = schedule(graph, budget)
            assert answer.optimal
            assert answer.seconds <= rotor + 1e-9


def layered(count, seed=0):
    """A forward pass with a few skips, and its backward pass, of 2 * count works."""
    draw = random.Random(seed)  # noqa: S311
    works, nbytes = [], []
    for k in range(count):
        reads = tuple(v for v in range(k) if v == k - 1 or (v >= k - 6 and draw.random() < 0.15))
        nbytes.append(draw.randint(1, 20) << 20)
        works.append(Work(name="f", number=k, reads=reads, makes=(k,), seconds=draw.random()))
    for k in reversed(range(count)):
        gradient = () if k == count - 1 else (len(nbytes) - 1,)
        nbytes.append(draw.randint(1, 20) << 20)
        reads = (*dict.fromkeys((*works[k].reads, k)), *gradient)
        works.append(Work(name="b", number=k, reads=reads, makes=(len(nbytes) - 1,), seconds=1.0, backward=True))
    return Graph(works=tuple(works), nbytes=tuple(nbytes), stays=frozenset({len(nbytes) - 1}))


@solver
def test_a_time_limit_is_kept_and_the_gap_is_told():
    # GIVEN a graph that a few seconds do not solve
    graph = layered(30)
    budget = 0.5 * peak_of(graph, plain(graph))
    begin = time.monotonic()
    answer = schedule(graph, budget, 4.0)
    # THEN what was found by then fits, and says how far it may be from the best
    assert time.monotonic() - begin < 12
    assert answer.peak_bytes <= budget
    assert 0 <= answer.gap < 0.3
    assert answer.optimal == (answer.gap == 0)
    assert answer.bound_seconds <= answer.seconds


@pytest.mark.parametrize("heuristic", HEURISTICS)
def test_dtr_keeps_its_budget_and_does_all_the_work(heuristic):
    graph = layered(60)
    most = peak_of(graph, plain(graph))
    costs = []
    for share in (1.0, 0.8, 0.6, 0.5):
        run = play(graph, share * most, heuristic)
        assert run.peak_bytes <= share * most
        assert set(run.works) == set(range(len(graph.works)))
        assert run.seconds == pytest.approx(sum(graph.works[k].seconds for k in run.works))
        costs.append(run.seconds)
    # AND with all the memory of the plain step it evicts nothing
    assert costs[0] == pytest.approx(seconds_of(graph, plain(graph)))
    assert costs == sorted(costs)
    with pytest.raises(InfeasibleError):
        play(graph, 0.05 * most, heuristic)


def test_dtr_names_its_heuristics():
    with pytest.raises(UsageError, match="h_dtr, h_dtr_eq, h_lru, h_msps"):
        play(layered(3), 1e12, "h_best")


@given(graphs(most=6))
@settings(max_examples=60, deadline=None)
def test_a_knapsack_is_brute_force(graph):
    # GIVEN all sets of works that a block may keep
    sets = [kept(graph, works) for works in subsets(range(graph.turn))]
    front = knapsack(graph)
    # THEN for each size the front holds one as fast as any, and nothing that is not what it says
    assert all(one == kept(graph, one.works) for one in front)
    for size in {one.saved_bytes for one in sets}:
        best = min(one.seconds for one in sets if one.saved_bytes <= size)
        assert min(one.seconds for one in front if one.saved_bytes <= size) == pytest.approx(best)


@given(graphs(most=6), st.data())
@settings(max_examples=60, deadline=None)
def test_a_cut_is_brute_force(graph, data):
    # GIVEN works that never run again, and the sets out of which the others make all that is needed
    once = data.draw(st.sampled_from(subsets(range(graph.turn))))

    def enough(works):
        there = {v for k in works for v in graph.works[k].makes}
        for k, work in enumerate(graph.works[: graph.turn]):
            if k not in once and there.issuperset(work.reads):
                there |= set(work.makes)
        return graph.needed() <= there

    least = min(kept(graph, works).saved_bytes for works in subsets(range(graph.turn)) if enough(works))
    # THEN the cut is one of them, and the smallest
    found = cut(graph, once)
    assert enough(found)
    assert kept(graph, found).saved_bytes == least


@given(graphs(most=5))
@settings(max_examples=40, deadline=None)
def test_lower_sets_are_brute_force(graph):
    # GIVEN all sequences of lower sets, with the paper's time and memory
    count = graph.turn
    before = [{v for v in graph.works[k].reads if v < count} for k in range(count)]
    lower = [s for s in subsets(range(count)) if s and all(before[k] <= s for k in s)]
    size = lambda works: sum(graph.nbytes[k] for k in works)  # noqa: E731  (work k makes value k)
    everything = frozenset(range(count))

    def sequences(last):
        if last == everything:
            yield ()
        for s in lower:
            if last < s:
                yield from ((s, *rest) for rest in sequences(s))

    def price(sets):
        held, seconds, peak, last = set(), 0.0, 0, frozenset()
        for s in sets:
            new, boundary = s - last, {k for k in s if any(k in before[j] for j in everything - s)}
            ahead = {j for j in everything - s if before[j] & s}
            beside = {k for j in ahead for k in before[j]} - s
            peak = max(peak, size(held) + 2 * size(new) + size(ahead) + size(beside))
            seconds += sum(graph.works[k].seconds for k in new - boundary) if s != everything else 0.0
            held |= boundary & new
            last = s
        return seconds, peak

    prices = [price(sets) for sets in sequences(frozenset())]
    for budget in sorted({peak for _, peak in prices}):
        best = min(seconds for seconds, peak in prices if peak <= budget)
        found = kusumoto.choose(graph, budget)
        assert found.exact
        assert found.seconds == pytest.approx(best)
        assert price(found.sets) == (pytest.approx(best), found.peak_bytes)
    with pytest.raises(InfeasibleError):
        kusumoto.choose(graph, min(peak for _, peak in prices) - 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5) | st.none(), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_splits_are_brute_force(pieces):
    # GIVEN all choices of places that can be cut, those among them that have to be
    inside, between, together = zip(*pieces, strict=True)
    places = range(1, len(pieces))
    must = {p for p in places if not together[p - 1]}

    def total(cuts):
        ends = [0, *sorted(cuts), len(pieces)]
        segments = [sum(inside[a:b]) for a, b in pairwise(ends)]
        return sum(between[p - 1] for p in cuts) + max(segments)

    able = [cuts for cuts in subsets(places) if must <= cuts and all(between[p - 1] is not None for p in cuts)]
    found = feng_huang.split(inside, between, together)
    if able:
        assert found.total_bytes == min(map(total, able)) == total(frozenset(found.cuts))


@st.composite
def stages_and_ways(draw):
    """A chain of stages of which only what they leave counts, and ways to run each."""
    stage = Stage(
        forward_seconds=0.0, backward_seconds=0.0, input_bytes=0, saved_bytes=0, gradient_bytes=0, left_bytes=0,
        light_bytes=0, forward_bytes=0, backward_bytes=0,
    )  # fmt: skip
    lefts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    chain = Chain(stages=tuple(replace(stage, left_bytes=left) for left in lefts), base_bytes=0)
    numbers = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))
    way = numbers.map(lambda n: Way(kept=None, seconds=float(n[0]), saved_bytes=n[1], peak_bytes=n[1] + n[2]))
    return chain, [draw(st.lists(way, min_size=1, max_size=3)) for _ in lefts]


@given(stages_and_ways())
@settings(max_examples=60, deadline=None)
def test_ways_of_blocks_are_chosen_as_by_brute_force(drawn):
    # GIVEN every way to run a chain, with its time and peak
    chain, choices = drawn
    every = [(sum(way.seconds for way in ways), chain_bytes(chain, ways)) for ways in product(*choices)]
    for budget in sorted({peak + 0.5 for _, peak in every} | {min(peak for _, peak in every) - 0.5}):
        # THEN within each budget the least is found
        least = min((seconds for seconds, peak in every if peak <= budget), default=None)
        found = best(chain, choices, budget)
        if least is None:
            assert found is None
        else:
            assert chain_bytes(chain, found) <= budget
            assert sum(way.seconds for way in found) == least


def test_what_is_changed_in_place_is_gone():
    # GIVEN a value that an op changes in place, and a reader of what it makes
    works = (
        Work(name="line", reads=(), makes=(0,), seconds=1.0),
        Work(name="relu", reads=(0,), makes=(1,), seconds=1.0, extra_bytes=-8, ends=(0,)),
        Work(name="back", reads=(1,), makes=(2,), seconds=1.0, backward=True),
    )
    graph = Graph(works=works, nbytes=(8, 8, 1), stays=frozenset({2}))
    # THEN it never takes room beside what it became
    assert peak_of(graph, plain(graph)) == 9
    run = play(graph, 9)
    assert (run.works, run.evictions) == ((0, 1, 2), 0)


def test_without_a_solver_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr(milp, "available", lambda: "")
    graph = layered(4)
    with pytest.raises(UnsupportedError, match="neither highspy nor scipy") as error:
        schedule(graph, 0.9 * peak_of(graph, plain(graph)))
    assert "dnnmem[plan]" in error.value.hint
