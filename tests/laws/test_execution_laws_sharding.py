"""Prediction = execution for data parallelism: passes over the plain step against rank 0 of 8 on a virtual GPU.

What is allocated is equal but for small change; of what is reserved, the first steps decide some.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

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
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
LLAMA = {
    "layers": "3", "width": "1024", "heads": "8", "kv_heads": "4", "ffn": "4096", "vocab": "8000", "context": "512",
    "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": "false", "tied": "false",
}  # fmt: skip
MODELS = {
    "gpt": Request(target=str(ROOT / "sample_models" / "gpt.py"), batch_size=2, seq_len=512, args=LLAMA),
    "resnet": Request(target=str(ROOT / "sample_models" / "resnet.py"), batch_size=8),
}
DDP = ("mesh.dp_replicate=8", "sharding.strategy=ddp")
ZERO1 = ("mesh.dp_shard=8", "sharding.strategy=zero1")
ZERO2 = ("mesh.dp_shard=8", "sharding.strategy=zero2")
ZERO3 = ("mesh.dp_shard=8", "sharding.strategy=zero3")
HSDP = ("mesh.dp_shard=4", "mesh.dp_replicate=2", "sharding.strategy=zero3")
BF16 = ("precision.compute=bfloat16", "precision.param=float32", "precision.reduce=float32")
THERE = ("offload.optimizer=true", "offload.parameters=true")
WAYS = [
    ("gpt", DDP),
    ("gpt", ZERO1),
    ("gpt", (*DDP, "sharding.bucket_views=true")),
    ("gpt", (*ZERO1, "sharding.bucket_views=true")),
    ("gpt", (*DDP, "sharding.bucket_views=true", "batch.accumulation=2")),
    ("gpt", (*ZERO1, *BF16, "batch.accumulation=2")),
    ("gpt", (*ZERO3, "precision.compute=bf16_amp", "offload.activations=all")),
    ("gpt", ZERO2),
    ("gpt", (*ZERO3, *BF16, "remat.policy=full")),
    ("gpt", (*ZERO3, *BF16, "remat.policy=ops", "remat.keep=mm.0.2,attention")),
    ("gpt", (*ZERO3, "sharding.split_root=true")),
    ("gpt", (*ZERO3, "batch.accumulation=2")),
    ("gpt", (*ZERO3, "sharding.prefetch=2")),
    ("gpt", (*ZERO3, *BF16, "remat.policy=full", "sharding.split_root=true", "sharding.prefetch=1")),
    ("gpt", (*ZERO2, "sharding.prefetch=3")),
    ("gpt", HSDP),
    ("gpt", (*ZERO3, *BF16, *THERE, "remat.policy=full")),
    ("gpt", (*HSDP, *THERE, "batch.accumulation=2")),
    ("gpt", (*ZERO3, "optimizer.kernel=fused")),
    ("gpt", (*ZERO3, "optimizer.name=momentum")),
    ("gpt", (*ZERO3, "optimizer.name=lion")),
    ("gpt", (*ZERO3, "optimizer.state=bfloat16")),
    ("gpt", (*ZERO1, "optimizer.name=muon")),
    ("gpt", (*DDP, "optimizer.name=lamb")),
    ("resnet", DDP),
    ("resnet", (*DDP, "sharding.bucket_views=true")),
]


@cache
def plain(model):
    """The step on one GPU, as recorded without one."""
    return run(replace(MODELS[model], device="fake", gpu=GPU), cache=cache_folder(os.environ))[0]


def test_a_last_rank_of_fewer_rows_needs_what_its_pass_says():
    # GIVEN 7 ranks, which divide no parameter's rows  WHEN the last one is rewritten, and runs
    plan = change(Plan(), ("mesh.dp_shard=7", "sharding.strategy=zero3"))
    [found] = rewrite(plain("gpt"), plan, rank=6)
    held = replay_on(found, find_device(GPU))
    ran = verify(MODELS["gpt"], plan, find_device(GPU), cache=cache_folder(os.environ), rank=6)
    # THEN it needs less than the first one, as predicted
    assert ran.outcome == "ran", ran.message
    first = replay_on(rewrite(plain("gpt"), plan)[0], find_device(GPU))
    assert held.peak_allocated_bytes < first.peak_allocated_bytes
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.001)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.015)


@pytest.mark.parametrize(("model", "settings"), WAYS, ids=lambda it: it if isinstance(it, str) else " ".join(it))
def test_a_rank_needs_what_its_pass_says(model, settings):
    plan = change(Plan(), settings)
    # GIVEN the plain step, rewritten
    [found] = rewrite(plain(model), plan)
    found.check()
    held = replay_on(found, find_device(GPU))
    # WHEN the same plan is applied, and rank 0 runs
    ran = verify(MODELS[model], plan, find_device(GPU), cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.015)
