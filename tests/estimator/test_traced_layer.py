"""A step that was put together from one traced layer keeps that layer's pauses, once for each layer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator import traced_layer
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Batch, Mesh, Pipeline, Plan, Tensor
from dnnmem.estimator.step_time import time_chunks, time_step
from dnnmem.estimator.time_model import load
from dnnmem.estimator.traced_layer import spans_of, with_sends
from tests.estimator.passes.steps import gpt

CLUSTER = find_cluster("dgx-a100")


def traced(**rates):
    """The rates of a table of traced parts."""
    return replace(load(CLUSTER.device), traced_layer=True, **rates)


def seconds_of(layers, model, tp=1):
    """Forward and backward seconds of a model of so many layers."""
    plan = Plan(mesh=Mesh(tp=tp), tensor=Tensor(loss_parallel=tp > 1))
    return time_chunks(local_step(gpt(), plan, CLUSTER, layers), model)[0][:2]


def test_pauses_before_a_kernel_belong_to_the_one_before_it_unless_a_part_ends() -> None:
    """GIVEN two parts on a slow host THEN the pause between them is in neither, and an op without a kernel has none."""
    assert spans_of([[1.0, 0.0, 1.0], [1.0]], [[2.0, 1.0, 2.0], [9.0]]) == [[3.0, 0.0, 1.0], [1.0]]


@pytest.mark.parametrize("host", [1e-9, 1e-3])
@pytest.mark.parametrize("tp", [1, 2])
def test_each_layer_adds_the_same_whatever_bounds_it(host: float, tp: int) -> None:
    """GIVEN traced parts WHEN layers are added THEN each adds the same seconds, messages included."""
    few, some, many = (seconds_of(layers, traced(host_seconds=host), tp) for layers in (3, 4, 7))
    for three, four, seven in zip(few, some, many, strict=True):
        assert seven - four == pytest.approx(3 * (four - three), rel=1e-9)


def test_a_busy_head_hides_the_host_of_the_backward_pass() -> None:
    """GIVEN a host that bounds the step WHEN it issues the backward pass at once THEN only that is shorter."""
    slow, fast = (seconds_of(3, traced(host_seconds=1e-3, host_backward=share)) for share in (1.0, 1e-6))
    assert fast[0] == slow[0]
    assert fast[1] < 0.5 * slow[1]


def test_a_step_is_its_parts_and_its_update() -> None:
    """GIVEN a host that costs nothing THEN the step is the sum of its parts, and waits for nothing else."""
    step, model = local_step(gpt(), Plan(), CLUSTER), traced(host_seconds=1e-12)
    assert time_step(step, model).seconds == pytest.approx(sum(time_chunks(step, model)[0]) + model.iteration_seconds)


def test_a_stage_stands_still_while_it_sends() -> None:
    """GIVEN three stages THEN the last sends nothing on, the first nothing back; twice the bytes at 26.8 GB/s."""
    gap = 2 * 2**24 / (100 * 2**30 / 4)
    forward, backward = with_sends([[1.0]] * 3, [[2.0]] * 3, 2**24)
    assert forward == [[1.0 + gap], [1.0 + gap], [1.0]]
    assert backward == [[2.0], [2.0 + gap], [2.0 + gap]]


def test_every_slot_of_a_pipeline_waits_for_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN two stages and eight micro-batches THEN messages cost each slot, not the filling of the pipeline alone."""
    plan = Plan(mesh=Mesh(pp=2), batch=Batch(accumulation=8), pipeline=Pipeline(schedule="1f1b"))
    step, model = local_step(gpt(), plan, CLUSTER, 4), traced()
    sent = max(m.nbytes for chunk in step.chunks for m in chunk.passed)
    monkeypatch.setattr(traced_layer, "_SENT_BYTES_PER_S", 1e6)
    slow = time_step(step, model).seconds
    monkeypatch.setattr(traced_layer, "_SENT_BYTES_PER_S", 1e18)
    gap = 2 * sent / 1e6
    assert slow - time_step(step, model).seconds >= 8 * gap
