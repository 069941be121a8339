"""Prediction = execution for updates on the host: beside loss scaling, micro-batches, ranks, and states on a disk."""

from __future__ import annotations

import os

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = find_device("h100-sxm-80gb")
SMALL = {"layers": "3", "width": "512", "heads": "8", "vocab": "4000"}
WAYS = (
    ("precision.compute=fp16_amp",),
    ("batch.accumulation=2",),
    ("offload.disk=true",),
    ("mesh.dp_shard=2", "sharding.strategy=zero1"),
    ("mesh.dp_shard=2", "sharding.strategy=zero3"),
    ("mesh.dp_shard=2", "sharding.strategy=zero2", "batch.accumulation=2"),
    ("mesh.dp_shard=2", "sharding.strategy=zero3", "batch.accumulation=2"),
)


def request(root, **more):
    return Request(target=str(root / "sample_models" / "gpt.py"), args=SMALL, batch_size=2, seq_len=128, **more)


@pytest.fixture(scope="module")
def plain_step(root):
    """The step as recorded without a GPU."""
    return run(request(root, device="fake", gpu=GPU.name), gpu=GPU, cache=cache_folder(os.environ))[0]


@pytest.mark.parametrize("settings", WAYS, ids=" ".join)
def test_a_pass_needs_what_its_apply_needs(settings, plain_step, root):
    # GIVEN a recorded step, rewritten, and the plan applied on a virtual GPU
    plan = change(Plan(), (*settings, "offload.optimizer=true"))
    [found] = rewrite(plain_step, plan)
    held = replay_on(found, GPU)
    ran = verify(request(root), plan, GPU, cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.02)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
