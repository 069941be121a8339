"""Prediction = execution for parameters on the host: the pass over the plain step against blocks that come and go."""

from __future__ import annotations

import os

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Batch, Offload, Plan, Remat
from dnnmem.estimator.replay import replay_on
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = find_device("h100-sxm-80gb")
WIDE = {"layers": "6", "width": "512", "heads": "8", "vocab": "4000"}
"""Blocks whose parameters are more than their activations."""
STREAMED = Offload(parameters=True, optimizer=True)
WAYS = {
    "all blocks": Plan(offload=STREAMED),
    "two stay": Plan(offload=Offload(parameters=True, optimizer=True, resident=2)),
    "accumulation": Plan(offload=STREAMED, batch=Batch(accumulation=2)),
    "computed again": Plan(offload=STREAMED, remat=Remat(policy="full")),
    "inputs of blocks too": Plan(
        offload=Offload(parameters=True, optimizer=True, activations="all"), remat=Remat(policy="full")
    ),
}


def request(root, **more):
    return Request(target=str(root / "sample_models" / "gpt.py"), args=WIDE, batch_size=1, seq_len=128, **more)


@pytest.fixture(scope="module")
def plain_step(root):
    """The step as recorded without a GPU."""
    return run(request(root, device="fake", gpu=GPU.name), gpu=GPU, cache=cache_folder(os.environ))[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_pass_needs_what_its_apply_needs(way, plain_step, root):
    # GIVEN a recorded step, rewritten, and the plan applied on a virtual GPU
    [found] = rewrite(plain_step, WAYS[way])
    held = replay_on(found, GPU)
    ran = verify(request(root), WAYS[way], GPU, cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
