"""What a calibration must do whatever the site: recover it, move only what is seen, grow surer with each step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.calibration import fit
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import load
from tests.estimator.steps_by_hand import H100, step

MODEL = load(H100.device)
NOISE = MODEL.spread["step"]
BIG, WIDE, TINY = step(products=8), step(sums=12), step(tiny=120)
MIXED = step(products=3, sums=5, tiny=40)


def seconds(steps, model):
    return [time_step(one, model).seconds for one in steps]


@settings(max_examples=5, deadline=None)
@given(gemm=st.floats(0.85, 1.15), stream=st.floats(0.8, 1.25), host=st.floats(0.4, 2.5))
def test_a_site_of_the_same_physics_is_recovered(gemm, stream, host):
    # GIVEN a site whose rates differ  WHEN three of its steps are measured
    site = replace(MODEL, gemm=MODEL.gemm * gemm, stream=MODEL.stream * stream, host_seconds=MODEL.host_seconds * host)
    steps = [BIG, WIDE, TINY]
    found = fit(steps, seconds(steps, site), MODEL)
    # THEN a step that was not measured is predicted within the noise of a step, or its error is a third of what it was
    wanted = time_step(MIXED, site).seconds
    before = abs(time_step(MIXED, MODEL).seconds / wanted - 1)
    assert time_step(MIXED, found.model).seconds == pytest.approx(wanted, rel=max(NOISE, before / 3))


def test_one_step_moves_what_it_depends_on_and_nothing_else():
    # GIVEN a step of products that took a tenth longer
    found = fit([BIG], [1.1 * time_step(BIG, MODEL).seconds], MODEL)
    # THEN products are slower, and what it does not contain is where it was
    assert found.model.gemm < MODEL.gemm
    assert found.model.attention_forward == MODEL.attention_forward
    assert found.model.norm == MODEL.norm
    assert found.model.network == MODEL.network


def test_a_wild_measurement_is_followed_only_as_far_as_the_prior_lets():
    # GIVEN a step that took a hundred times what any GPU of this kind needs
    found = fit([BIG], [100 * time_step(BIG, MODEL).seconds], MODEL)
    # THEN no parameter goes further than three of its spreads
    assert found.model.gemm >= MODEL.gemm * 2.71828 ** (-3.01 * MODEL.spread["arithmetic"])


def test_an_odd_step_among_three_does_not_carry_the_others_with_it():
    # GIVEN two steps that took what is predicted, and one of the same kind that took half as long again
    steps = [step(products=n) for n in (4, 8, 6)]
    found = fit(steps, [t * odd for t, odd in zip(seconds(steps, MODEL), (1.0, 1.0, 1.5), strict=True)], MODEL)
    # THEN a step that was not measured is predicted as before, to half of what one step errs
    other = step(products=5)
    assert time_step(other, found.model).seconds == pytest.approx(time_step(other, MODEL).seconds, rel=NOISE / 2)


def test_a_single_step_is_believed_as_there_is_none_to_call_it_odd():
    # GIVEN a site whose host is 14 times as slow, and one step of it
    steps = [step(tiny=3000)]
    found = fit(steps, seconds(steps, replace(MODEL, host_seconds=14 * MODEL.host_seconds)), MODEL)
    # THEN the host is taken to be as slow as the prior lets it
    assert found.model.host_seconds > 4 * MODEL.host_seconds


def test_steps_as_predicted_change_nothing():
    found = fit([BIG, TINY], seconds([BIG, TINY], MODEL), MODEL)
    assert found.model.gemm == pytest.approx(MODEL.gemm, rel=1e-6)
    assert found.after == pytest.approx(found.measured, rel=1e-6)


def test_more_steps_make_surer():
    # GIVEN one, two and three measured steps, the later ones of another kind
    steps = [BIG, WIDE, TINY]
    fits = [fit(steps[:n], seconds(steps[:n], MODEL), MODEL) for n in (1, 2, 3)]
    # THEN no spread grows, each kind's shrinks when a step of it comes, and a step's own stays
    for kind in MODEL.spread:
        spreads = [MODEL.spread[kind], *(found.model.spread[kind] for found in fits)]
        assert spreads == sorted(spreads, reverse=True)
    assert fits[2].model.spread["step"] == NOISE
    assert fits[0].model.spread["arithmetic"] < MODEL.spread["arithmetic"]
    assert fits[2].model.spread["host"] < 0.5 * MODEL.spread["host"]


def test_a_slow_host_is_found_though_the_packaged_one_bounds_no_step():
    # GIVEN steps of kernels that each outlast the packaged host's dispatch  WHEN a site's host is four times as slow
    site = replace(MODEL, host_seconds=4 * MODEL.host_seconds)
    mid, long, more = (step(sums=n, nbytes=2**24) for n in (200, 400, 1000))
    assert time_step(mid, site).seconds > 1.5 * time_step(mid, MODEL).seconds
    found = fit([mid, long], seconds([mid, long], site), MODEL)
    # THEN it is the host that is taken to be slow, and a longer step of the kind is predicted
    assert found.model.host_seconds > 2 * MODEL.host_seconds
    assert time_step(more, found.model).seconds == pytest.approx(time_step(more, site).seconds, rel=0.1)
