"""A step's time follows from its ops and lanes, and from how a site's table was made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Mesh, Plan, Tensor
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import load
from tests.estimator.passes.steps import gpt


def test_serial_messages_add_up_where_the_host_bounds() -> None:
    """GIVEN a host that bounds the step WHEN messages are serial THEN their seconds come to those of the host alone."""
    cluster = find_cluster("dgx-a100")
    step = local_step(gpt(), Plan(mesh=Mesh(tp=2), tensor=Tensor(loss_parallel=True)), cluster)
    slow = replace(load(cluster.device), host_seconds=1e-3)
    beside, after = (time_step(step, replace(slow, serial_messages=serial)) for serial in (False, True))
    issued = sum(int(n) for n in step.chunks[0].work.host_ops) - 3 * len(step.chunks[0].messages)
    sent = after.classes["communication"]
    assert after.seconds == pytest.approx(issued * 1e-3 + sent + slow.iteration_seconds, rel=0.02)
    assert after.classes["communication"] == beside.classes["communication"]
