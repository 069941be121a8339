"""Prediction = execution for compression: the pass over the plain step against hooks that encode what is saved."""

from __future__ import annotations

import os

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Compression, Plan, Precision, Remat
from dnnmem.estimator.replay import replay_on
from dnnmem.profilers.request import Request
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.laws.test_execution_laws_remat import GPU, MODELS, plain_step

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
WAYS = {
    "8 bits": Plan(compression=Compression(bits=8)),
    "2 bits, masks": Plan(compression=Compression(bits=2, masks=True)),
    "masks": Plan(compression=Compression(masks=True)),
    "projection": Plan(compression=Compression(projection=0.25)),
    "inputs of blocks": Plan(compression=Compression(bits=4), remat=Remat(policy="full")),
    "half precision": Plan(compression=Compression(bits=4), precision=Precision(compute="bf16_amp")),
}
CASES = [
    ("gpt", "8 bits"), ("gpt", "projection"), ("gpt", "inputs of blocks"), ("gpt", "half precision"),
    ("vit", "8 bits"), ("resnet", "masks"), ("resnet", "2 bits, masks"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "way"), CASES)
def test_a_pass_needs_what_its_apply_needs(model, way, root):
    # GIVEN a recorded step, rewritten, and the plan applied on a virtual GPU
    [found] = rewrite(plain_step(model, root), WAYS[way])
    held = replay_on(found, find_device(GPU))
    asked = Request(**{**MODELS[model], "target": str(root / MODELS[model]["target"])})
    ran = verify(asked, WAYS[way], find_device(GPU), cache=cache_folder(os.environ), gradients=False)
    # THEN what is alive agrees
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
