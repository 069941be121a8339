"""What becomes of blocks is read off steps that passes rewrote, and agrees with the plans behind them."""

from __future__ import annotations

import pytest

from dnnmem.estimator.block_fates import fates, groups
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Offload, Plan, Remat
from tests.estimator.passes.steps import gpt

BLOCKS = 6


def fate_of(plan=None, layers=BLOCKS):
    """Each block's, every op taking a second."""
    plain = gpt(layers, batch=64)
    [planned] = rewrite(plain, plan or Plan())
    return fates(plain, planned, [1.0] * len(planned.ops))


def test_the_plain_step_keeps_all():
    for fate in fate_of():
        assert fate.kept_bytes == fate.saved_bytes > 0
        assert fate.host_bytes == fate.again_seconds == 0


def test_what_is_computed_again_is_not_kept():
    for plain, fate in zip(fate_of(), fate_of(Plan(remat=Remat(policy="full"))), strict=True):
        assert fate.saved_bytes == plain.saved_bytes
        assert fate.kept_bytes < 0.2 * fate.saved_bytes
        # all but what early stop spares
        assert 0.7 * fate.forward_seconds < fate.again_seconds <= fate.forward_seconds


def test_nested_runs_are_computed_again_more_than_once():
    found = fate_of(Plan(remat=Remat(policy="segments", segments="0-4(1-2)")))
    assert [fate.again_seconds > 1.2 * fate.forward_seconds for fate in found] == [False, True, True, *[False] * 3]
    assert found[5].again_seconds == 0


def test_what_is_on_the_host_is_neither_kept_nor_computed_again():
    *sent, last = fate_of(Plan(offload=Offload(activations="all", min_bytes=1)))
    for fate in sent:
        assert fate.host_bytes > 0.7 * fate.saved_bytes
        assert fate.kept_bytes < 0.3 * fate.saved_bytes
        assert fate.again_seconds == 0
    assert (last.host_bytes, last.kept_bytes) == (0, last.saved_bytes)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("segments", ["", "0-1,2-3", "0-4(1-2)", "1,3,5"])
def test_each_block_is_in_one_group_in_order(segments, fold):
    remat = Remat(policy="segments", segments=segments) if segments else Remat()
    found = groups(fate_of(Plan(remat=remat)), segments, fold=fold)
    assert [fate.block for group in found for fate in group.fates] == list(range(BLOCKS))


def test_equal_runs_are_one_group_unless_all_are_asked_for():
    # GIVEN two runs of two, and two blocks that are kept
    found = fate_of(Plan(remat=Remat(policy="segments", segments="0-1,2-3")))
    # THEN each kind is a line, or each run and block is
    assert [(g.path, g.run) for g in groups(found, "0-1,2-3")] == [("blocks.0-3", 2), ("blocks.4-5", 1)]
    told = [g.path for g in groups(found, "0-1,2-3", fold=False)]
    assert told == ["blocks.0-1", "blocks.2-3", "blocks.4", "blocks.5"]


def test_a_pattern_that_repeats_over_many_blocks_is_one_group():
    # GIVEN each second block of 48 computed again
    found = fate_of(Plan(remat=Remat(policy="every", every=2)), layers=48)
    # THEN it is told in a few lines, half of it computed again
    some = groups(found)
    assert len(some) <= 3
    assert max(some, key=lambda group: len(group.fates)).again == pytest.approx(0.5, abs=0.1)
