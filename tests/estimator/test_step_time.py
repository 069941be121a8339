"""A step's time follows from its ops and lanes, and from how a site's table was made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Kernels, Mesh, Plan, Tensor
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import load
from tests.estimator.passes.steps import gpt


@pytest.mark.parametrize(
    ("fusion", "first", "searches"), [("none", False, True), ("pointwise", False, False), ("none", True, False)]
)
def test_eager_parts_of_a_sequence_are_put_together_element_by_element(
    fusion: str, *, first: bool, searches: bool
) -> None:
    """GIVEN slow index kernels WHEN a sequence that is no first dimension is gathered eagerly THEN it takes longer."""
    cluster = find_cluster("dgx-a100")
    tensor = Tensor(sequence_parallel=True, loss_parallel=True, sequence_first=first)
    step = local_step(gpt(), Plan(mesh=Mesh(tp=2), tensor=tensor, kernels=Kernels(fusion=fusion)), cluster)
    model = load(cluster.device)
    sent = [time_step(step, replace(model, index_seconds=s)).classes["communication"] for s in (1e-9, 1e-6)]
    assert (sent[1] > 1.01 * sent[0]) is searches
