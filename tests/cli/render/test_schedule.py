"""The drawing of a step: its numbers are the step's, and its signs say what the step does."""

from __future__ import annotations

import pytest

from dnnmem.cli.render.schedule import fate_words, picture
from dnnmem.cli.render.schedule_grid import KINDS, Step, grid
from dnnmem.estimator.block_fates import fates, groups
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Offload, Plan, Remat
from dnnmem.estimator.step_time import time_ops
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Lane, Phase
from tests.estimator.passes.steps import gpt

PLANS = {
    "plain": Plan(),
    "full": Plan(remat=Remat(policy="full")),
    "segments": Plan(remat=Remat(policy="segments", segments="0-3(2-3),5")),
    "selective": Plan(remat=Remat(policy="selective")),
    "host": Plan(offload=Offload(activations="all", min_bytes=1)),
}


def step_of(plan, layers=8):
    plain, cluster = gpt(layers, batch=64), find_cluster("h100:1")
    step = local_step(plain, plan, cluster)
    _, timing = time_ops(step, load(cluster.device))
    found = fates(plain, step.local, (timing.end - timing.start).tolist())
    return Step(plain=plain, planned=step.local, timing=timing, groups=groups(found, plan.remat.segments))


@pytest.mark.parametrize("way", PLANS)
def test_the_grid_holds_all_seconds_and_the_peak(way):
    # GIVEN a planned step in 60 columns
    step = step_of(PLANS[way])
    found = grid(step, 60)
    # THEN the work in it is that of the lanes, its peak the step's, and it ends with nothing held by blocks
    lanes = (Lane.COMPUTE, Lane.TO_HOST, Lane.TO_DEVICE)
    busy = sum(step.timing.busy.get(lane, 0.0) for lane in lanes)
    assert found.work.sum() == pytest.approx(busy, rel=1e-6)
    assert found.memory.max() == step.planned.peak_bytes()
    assert not found.held[1:-2, -1].any()
    assert (found.held >= 0).all()
    assert list(found.starts) == [Phase.FORWARD, Phase.BACKWARD, Phase.STEP]


@pytest.mark.parametrize("way", PLANS)
@pytest.mark.parametrize(("width", "unicode"), [(80, True), (80, False), (120, True), (40, True)])
def test_the_picture_keeps_its_width_and_shows_each_block_forward_then_backward(way, width, unicode):
    lines = picture(step_of(PLANS[way]), width=width, unicode=unicode)
    rows = [line for line in lines if line.startswith("blocks")]
    assert rows
    assert all(len(line) <= max(width, 52) for line in lines)
    for row in rows:
        assert 0 < row.index("F") < row.rindex("B")
    assert any("R" in row for row in rows) == (way in {"full", "segments", "selective"})
    assert any(set("~>") & set(row) for row in rows) == (way == "host")
    assert unicode or all(line.isascii() for line in lines)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("plain", ["kept"]),
        ("full", ["again"]),
        ("segments", ["again", "kept", "again", "kept"]),
        ("selective", ["part again"]),
        ("host", ["to host", "kept"]),
    ],
)
def test_a_group_is_told_in_a_word(way, words):
    assert [fate_words(group).split(" x")[0] for group in step_of(PLANS[way]).groups] == words


def test_equal_blocks_take_one_line_however_many():
    lines = picture(step_of(PLANS["full"], layers=48), width=80, unicode=True)
    assert sum(line.startswith("blocks") for line in lines) == 1
    assert len(KINDS) == 6
