"""POFO keeps, computes again or sends as the best of all ways does."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.planners.pofo import Pofo
from dnnmem.estimator.planners.rotor import solve
from tests.estimator.planners.chains import chains, ends, play, play_part, ways


def units(stages, s):
    """All ways to treat the stages from `s` on: (first, end, run or None, sent), unit by unit."""
    if s == len(stages):
        yield ()
        return
    last = max(k for k, stage in enumerate(stages) if stage.block is not None)
    own = [(s + 1, None)]
    own += [(u, inner) for u in ends(stages, s, len(stages) - 1) for inner in ways(stages, s, u - 1)]
    for end, inner in own:
        travels = stages[s].sent_bytes if inner is None else stages[s].input_bytes
        for sent in (False, True) if stages[s].block is not None and end - 1 < last and travels else (False,):
            for rest in units(stages, end):
                yield (s, end, inner, sent), *rest


def played(stages, way, rate):
    """Seconds and peak of one way: what a unit sends leaves during the next one, and comes back during it."""
    gradient, n = stages[-1].gradient_bytes, len(stages)
    seconds, peak, live, travels = 0.0, 0, 0, 0
    before = "kept"
    tape = []
    for s, end, inner, sent in way:
        stage = stages[s]
        peaks = [stages[s].forward_bytes] if inner is None else [
            stages[j].light_bytes + (stages[j].input_bytes if j > s else 0) for j in range(s, end)
        ]  # fmt: skip
        peak = max(peak, live + gradient + travels + max(peaks))
        seconds += max(sum(stage.forward_seconds for stage in stages[s:end]), travels / rate)
        tape.append((s, end, inner, live, travels))
        goes = stage.sent_input_bytes + (stage.sent_shared_bytes if before != "kept" else 0)
        if inner is None:
            live += stage.saved_bytes - (stage.sent_own_bytes + goes if sent else 0)
        else:
            live += stages[end].input_bytes - (min(goes, stage.input_bytes) if sent else 0)
        travels = (stage.sent_bytes if inner is None else stage.input_bytes) if sent else 0
        before = "kept" if inner is None and not sent else "other"
    for s, end, inner, live, travels in reversed(tape):
        left = sum(stage.left_bytes for stage in stages[end:n])
        if inner is None:
            most, took = live + travels + left + stages[s].backward_bytes, stages[s].backward_seconds
        else:
            took, most = play_part(stages, s, end - 1, {run.first: run for run in inner}, live + travels + left)
        peak, seconds = max(peak, most), seconds + max(took, travels / rate)
    return seconds, peak


@given(chains(most=4), st.sampled_from([0.5, 1.0, 4.0]))
@settings(max_examples=40, deadline=None)
def test_pofo_is_brute_force(chain, rate):
    # GIVEN every way to keep, compute again and send, with its seconds and peak
    stages = chain.stages
    all_ways = [played(stages, way, rate) for way in units(stages, 0)]
    most = max(peak for _, peak in all_ways) + 20
    found = Pofo(table=solve(chain, most, slot_bytes=1), bytes_per_s=rate)
    alone = {
        "rotor": Pofo(table=found.table, bytes_per_s=rate, sends=False).seconds(),
        "offload": Pofo(table=found.table, bytes_per_s=rate, runs=False).seconds(),
    }
    inputs = [cost for way, cost in zip(units(stages, 0), all_ways, strict=True) if not _sends_tapes(way)]
    tiers = Pofo(table=found.table, bytes_per_s=rate, tapes=False).seconds()
    row = found.seconds()
    for budget in range(most + 1):
        # THEN at each budget POFO takes the least, no more than each alone
        best = min((seconds for seconds, peak in all_ways if peak <= budget), default=math.inf)
        assert row[budget] == best
        assert row[budget] <= min(alone["rotor"][budget], alone["offload"][budget])
        # AND two tiers of checkpoints are the best of what sends inputs of runs alone
        assert tiers[budget] == min((seconds for seconds, peak in inputs if peak <= budget), default=math.inf)
        # AND without sending it is Rotor
        assert alone["rotor"][budget] == found.table.seconds_at(budget)
        if best < math.inf:
            # AND its schedule costs that, within the budget
            schedule = found.schedule(budget)
            way = tuple(_units(stages, schedule))
            assert played(stages, way, rate)[0] == best
            assert played(stages, way, rate)[1] <= budget


def _sends_tapes(way):
    return any(sent and inner is None for _, _, inner, sent in way)


def _units(stages, schedule):
    runs = {run.first: run for run in schedule.runs}
    s = 0
    while s < len(stages):
        run = runs.get(s)
        end = run.last + 1 if run else s + 1
        yield s, end, run.inner if run else None, s in schedule.sent
        s = end


@given(chains(most=12), st.integers(3, 12))
@settings(max_examples=30, deadline=None)
def test_coarse_slots_keep_the_budget_and_more_memory_never_costs_time(chain, slots):
    most = 2 * play(chain, ())[1] + 1
    found = Pofo(table=solve(chain, most, slot_bytes=most / slots), bytes_per_s=1.0)
    costs = found.seconds().tolist()
    assert costs == sorted(costs, reverse=True)
    for slot, cost in enumerate(costs):
        if cost < math.inf:
            way = tuple(_units(chain.stages, found.schedule(slot)))
            assert played(chain.stages, way, 1.0)[1] <= slot * most / slots
