"""Copies take the link's time, more where several GPUs of a node share it; both directions have lanes of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.host_link import copy_bytes_per_s
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.passes.offload_copies import IN, OUT
from dnnmem.estimator.plan import Offload, Plan
from dnnmem.estimator.simulate import simulate
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Lane, Op
from tests.estimator.passes.steps import gpt


@pytest.mark.parametrize(
    ("name", "share"), [("a100-sxm-80gb", 1), ("a100-sxm-80gb:2", 2), ("dgx-a100", 2), ("h100-sxm-80gb:8", 1)]
)
def test_gpus_behind_one_switch_share_its_link(name, share):
    cluster = find_cluster(name)
    alone = replace(cluster, host_gpus=1)
    model = load(cluster.device)
    assert copy_bytes_per_s(cluster, model) == copy_bytes_per_s(alone, model) / share


def test_copies_of_a_step_take_as_much_longer():
    # GIVEN a step whose activations travel, on a GPU alone and on one whose neighbour copies too
    plan = Plan(offload=Offload(activations="all", min_bytes=1))
    lanes = []
    for gpus in (1, 2):
        cluster = replace(find_cluster("a100-sxm-80gb"), host_gpus=gpus)
        link = replace(cluster.host, latency_seconds=0.0)
        step = local_step(gpt(4, batch=64), plan, replace(cluster, host=link))
        lanes.append(time_step(step, load(cluster.device)).lanes)
    for lane in ("to_host", "to_device"):
        assert lanes[1][lane] == pytest.approx(2 * lanes[0][lane])


def test_both_directions_run_at_once_and_copies_of_one_follow_each_other():
    ops = [Op(name=OUT, lane=Lane.TO_HOST), Op(name=IN, lane=Lane.TO_DEVICE), Op(name=OUT, lane=Lane.TO_HOST)]
    timing = simulate(ops, [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert timing.start.tolist() == [0.0, 0.0, 1.0]
