"""Each rule ranks what it should, fits its budget or refuses, and never takes longer for more memory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import InfeasibleError, UnsupportedError
from dnnmem.estimator.plan import Offload
from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.planners.offload_policies import (
    PLANNERS,
    absences,
    by_distance,
    by_free_time,
    by_scores,
    cheap_again,
)
from dnnmem.estimator.planners.problem import Found, problem_of
from dnnmem.estimator.planners.solve import solve_problem
from dnnmem.estimator.planners.swap_advisor import PLANNER, genomes
from tests.estimator.passes.steps import gpt
from tests.profilers.recorded import zoo_fake

NAMES = [*(planner.name for planner in PLANNERS), PLANNER.name]


def chain(*blocks):
    """Blocks of (bytes that travel, seconds of the forward pass), backward passes taking twice as long; a loss."""
    stage = Stage(
        forward_seconds=1.0, backward_seconds=1.0, input_bytes=0, saved_bytes=0, gradient_bytes=0, left_bytes=0,
        light_bytes=0, forward_bytes=0, backward_bytes=0,
    )  # fmt: skip
    stages = (
        replace(stage, block=n, saved_bytes=nbytes, sent_bytes=nbytes, forward_seconds=f, backward_seconds=2 * f)
        for n, (nbytes, f) in enumerate(blocks)
    )
    return Chain(stages=(*stages, stage), base_bytes=0)


def test_what_a_block_saves_waits_for_all_behind_it():
    # GIVEN blocks of 1, 2 and 3 seconds, and a loss of 2; the last block sends nothing
    found = absences(chain((8, 1.0), (8, 2.0), (8, 3.0)))
    assert [(item.block, item.seconds) for item in found] == [(0, 17.0), (1, 11.0)]


def test_first_what_is_read_again_last():
    assert by_distance(chain((8, 1.0), (80, 1.0), (8, 1.0))) == [[0, 1]]


def test_first_the_largest_area():
    # GIVEN a block that waits a little less, and is ten times as large  THEN duration and area rank them differently
    duration, area, load, left = by_scores(chain((8, 1.0), (80, 1.0), (8, 1.0)))
    assert duration == [0, 1]
    assert area == load == left == [1, 0]


def test_what_is_cheap_runs_again_and_the_rest_travels():
    # GIVEN 10 bytes a second: block 0 is fetched in 8 s and made in 1, block 1 fetched in 1 s and made in 2
    found = cheap_again(chain((80, 1.0), (10, 2.0), (10, 1.0)), 10.0)
    assert ([0], [1]) in found
    assert ([0, 1], [0, 1]) in found


def test_copies_while_they_hide_and_then_what_costs_less():
    # GIVEN two blocks whose copies take 2 s each way  THEN both hide, the one with more time first
    assert by_free_time(chain((20, 2.0), (20, 2.0), (20, 2.0)), 10.0) == [([], [0]), ([], [0, 1])]
    # AND where the second one would wait for the link, it runs again: that takes less than what is missing
    assert by_free_time(chain((60, 1.0), (60, 1.0), (60, 1.0)), 10.0)[-1] == ([0, 1], [])


@cache
def problem():
    """A step whose blocks save megabytes."""
    return problem_of(gpt(4, batch=512), 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_fits_and_more_memory_never_costs_time(name):
    # GIVEN budgets from half of what the plain step needs up to all of it
    plain, seconds = problem().plain(), []
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        asked = replace(problem(), budget_bytes=int(plain.peak_bytes * share))
        with suppress(InfeasibleError):
            found = solve_problem(asked, name)
            assert found.cost.peak_bytes <= asked.budget_bytes
            seconds.append(found.cost.seconds)
    assert len(seconds) > 1
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_says_what_it_needs(name):
    with pytest.raises(InfeasibleError) as error:
        solve_problem(problem(), name)
    # THEN with that much a plan fits
    found = solve_problem(replace(problem(), budget_bytes=error.value.needed_bytes), name)
    assert found.cost.peak_bytes <= error.value.needed_bytes


def test_swap_advisor_finds_what_its_seed_says_and_is_no_slower_than_the_rules():
    asked = replace(problem(), budget_bytes=int(problem().plain().peak_bytes * 0.8))
    again = replace(asked, made={})
    assert genomes(asked) == genomes(again)
    own = solve_problem(asked, PLANNER.name).cost.seconds
    for name in ("superneurons", "capuchin"):
        assert own <= solve_problem(asked, name).cost.seconds


def test_a_network_without_a_chain_sends_the_inputs_of_its_convolutions():
    # GIVEN a residual network without a list of blocks
    trace = zoo_fake("resnet").trace
    asked = problem_of(trace, 1, cluster=find_cluster("h100-sxm-80gb"))
    cost = asked.cost(Found(offload=Offload(activations="conv", min_bytes=1)))
    assert cost.seconds > asked.plain().seconds


def test_a_step_with_nothing_to_send_is_refused():
    asked = problem_of(zoo_fake("lstm").trace, 1, cluster=find_cluster("h100-sxm-80gb"))
    with pytest.raises(UnsupportedError):
        solve_problem(asked, "vdnn")
    with pytest.raises(UnsupportedError):
        solve_problem(asked, "tflms")
