"""Prediction = execution for activation offload: the pass over the plain step against blocks that send and fetch."""

from __future__ import annotations

import os

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Offload, Plan, Precision, Remat
from dnnmem.estimator.replay import replay_on
from dnnmem.profilers.request import Request
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.laws.test_execution_laws_remat import GPU, MODELS, plain_step

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
WAYS = {
    "all": Plan(offload=Offload(activations="all")),
    "every second": Plan(offload=Offload(activations="every", every=2)),
    "blocks": Plan(offload=Offload(activations="blocks", blocks="0,2")),
    "files": Plan(
        offload=Offload(activations="blocks", blocks="0-1", files=True),
        remat=Remat(policy="segments", segments="0,1-2"),
    ),
    "conv": Plan(offload=Offload(activations="conv")),
    "inputs of blocks": Plan(offload=Offload(activations="all"), remat=Remat(policy="full")),
    "half precision": Plan(
        offload=Offload(activations="all"),
        remat=Remat(policy="every", every=2),
        precision=Precision(compute="bf16_amp"),
    ),
    "beside kept ops": Plan(offload=Offload(activations="all"), remat=Remat(policy="selective")),
    "sent, computed again, kept": Plan(
        offload=Offload(activations="blocks", blocks="0-1"), remat=Remat(policy="segments", segments="1-2")
    ),
}
CASES = [*(("gpt", way) for way in WAYS if way != "conv"), ("resnet", "all"), ("resnet", "conv")]


@pytest.mark.parametrize(("model", "way"), CASES)
def test_a_pass_needs_what_its_apply_needs(model, way, root):
    # GIVEN a recorded step, rewritten, and the plan applied on a virtual GPU
    [found] = rewrite(plain_step(model, root), WAYS[way])
    held = replay_on(found, find_device(GPU))
    asked = Request(**{**MODELS[model], "target": str(root / MODELS[model]["target"])})
    ran = verify(asked, WAYS[way], find_device(GPU), cache=cache_folder(os.environ))
    # THEN what is alive agrees
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.01)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
