"""What replicas send instead of whole gradients: nothing is lost that is not kept, and replicas stay alike."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from tests.laws.gloo import run_ranks
from tests.laws.programs.gradient_plans import PLANS, STEPS, WARMUP
from tests.laws.programs.shared_plans import build, loss_of

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
RANKS = 2
NEAR = {"rtol": 2e-5, "atol": 1e-7}
"""Sums in another order."""
ROUNDED = {"float16": 2**-10, "bfloat16": 2**-7}
"""Twice what rounding a number to its length may change."""
COMPRESSED = [way for way in PLANS if way not in ROUNDED and not way.startswith(("ddp", "local", "sgd"))]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two real processes saw."""
    return run_ranks("gradient_work.py", RANKS, tmp_path_factory.mktemp("ranks"))


def buckets(ranks, way, step):
    """Of each bucket of a step: what went in and came out, (before, after) of each rank."""
    return list(zip(*(rank[way]["seen"][step] for rank in ranks), strict=True))


@pytest.mark.parametrize("way", [way for way in PLANS if way != "local, 2 steps"])
def test_replicas_stay_alike(way, ranks):
    for one, other in zip(ranks[0][way]["weights"], ranks[1][way]["weights"], strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("way", COMPRESSED)
def test_first_steps_send_whole_gradients(way, ranks):
    for both in buckets(ranks, way, WARMUP - 1):
        mean = sum(before[0] for before, _ in both) / RANKS
        for _, after in both:
            torch.testing.assert_close(after[0], mean, **NEAR)


@pytest.mark.parametrize("way", sorted(ROUNDED))
def test_rounded_gradients_are_those_of_ddp(way, ranks):
    found, whole = ranks[0][way]["grads"][0], ranks[0]["ddp"]["grads"][0]
    for name, grad in whole.items():
        torch.testing.assert_close(found[name], grad, rtol=ROUNDED[way], atol=ROUNDED[way] * float(grad.abs().max()))


@pytest.mark.parametrize("way", ["topk", "topk, zero1", "topk, accumulated"])
def test_the_largest_are_sent_and_the_others_wait_exactly(way, ranks):
    # GIVEN a bucket, and what waited  THEN what waits now and what was sent are both of them, to the last bit
    for both in buckets(ranks, way, STEPS - 1):
        sent = [before[1] + before[0] - after[1] for before, after in both]
        for (before, after), some in zip(both, sent, strict=True):
            assert torch.equal(some + after[1], before[1] + before[0])
            gone = some != 0
            assert 0 < gone.sum() <= 0.05 * some.numel() + 1
            assert torch.all(after[1][gone] == 0)
        # AND what comes out is the mean of what was sent
        torch.testing.assert_close(both[0][1][0], sum(sent) / RANKS, rtol=0.0, atol=0.0)


def test_dgc_sends_momentum_of_what_waits(ranks):
    # GIVEN a bucket with velocity and what waits  THEN the mean of what leaves comes out
    for both in buckets(ranks, "dgc", STEPS - 1):
        sent = []
        for (grad, waiting, velocity), (_, left, rest) in both:
            moved = velocity * 0.9 + grad
            sent.append(waiting + moved - left)
            gone = sent[-1] != 0
            # AND velocity stays where nothing was sent, and begins anew where it was
            torch.testing.assert_close(rest[~gone], moved[~gone], **NEAR)
            assert torch.all(rest[gone & (left == 0)] == 0)
        torch.testing.assert_close(both[0][1][0], sum(sent) / RANKS, **NEAR)


@pytest.mark.parametrize("way", ["signsgd", "onebit"])
def test_what_signs_miss_waits_on_both_ways(way, ranks):
    # GIVEN what ranks had, for onebit first moments, and what waited at them and at who averages each part
    for both in buckets(ranks, way, STEPS - 1):
        n = both[0][0][0].numel()
        had = [torch.nn.functional.pad(before[0], (0, before[1].numel() - n)) + before[1] for before, _ in both]
        sent = sum(some - after[1] for some, (_, after) in zip(had, both, strict=True)) / RANKS
        waited, left = (torch.cat([pair[k][2] for pair in both]) for k in (0, 1))
        # THEN what comes out is the mean of what they sent, but for what waits now
        torch.testing.assert_close(both[0][1][0], (sent + waited - left)[:n], rtol=1e-4, atol=1e-6)


def test_one_bit_adam_takes_first_moments_as_they_come_and_second_ones_rest(ranks):
    # GIVEN steps after the first ones  THEN what came is the first moment, and the second is that of the first steps
    found = ranks[0]["onebit"]
    for step in range(WARMUP, STEPS):
        came = list(found["grads"][step].values())
        torch.testing.assert_close([first for first, _ in found["moments"][step]], came, rtol=0.0, atol=0.0)
        rested = [second for _, second in found["moments"][WARMUP - 1]]
        torch.testing.assert_close([second for _, second in found["moments"][step]], rested, rtol=0.0, atol=0.0)
    # AND the step goes on from AdamW's: first steps are the same
    torch.testing.assert_close(found["weights"][WARMUP - 1], ranks[0]["ddp"]["weights"][WARMUP - 1], **NEAR)


def test_what_narrow_matrices_miss_waits(ranks):
    for both in buckets(ranks, "powersgd", STEPS - 1):
        for before, after in both:
            torch.testing.assert_close(after[0] + after[1], before[0] + before[1], **NEAR)


def test_averaging_each_step_is_ddp(ranks):
    torch.testing.assert_close(ranks[0]["local, 1 step"]["weights"], ranks[0]["sgd"]["weights"], rtol=0.0, atol=0.0)


def test_parameters_are_averaged_after_local_steps(ranks):
    # GIVEN two ranks that go apart after the first steps
    apart = [rank["local, 2 steps"]["weights"] for rank in ranks]
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(*apart, strict=True)]
    assert same == [True, True, False, True, False, True]
    # THEN what they hold after an average is that of two models that were trained alone
    for step in (3, 5):
        alone = [_local_steps(apart[rank][step - 2], rank, step) for rank in range(RANKS)]
        mean = {name: sum(some[name] for some in alone) / RANKS for name in alone[0]}
        torch.testing.assert_close(apart[0][step], mean, rtol=1e-4, atol=1e-6)


def _local_steps(weights, rank, step):
    """Two steps of SGD by one rank alone, the second of which is `step`."""
    model, _, batches = build()
    model.load_state_dict(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)  # AdamW's decay of weights is not SGD's
    for number in (step - 1, step):
        loss_of(model, [part.chunk(RANKS)[rank] for part in batches[number % len(batches)]]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()
