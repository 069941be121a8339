"""Prediction = execution for tensor and sequence parallelism: the pass against ranks on a virtual GPU.

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
GPT = str(ROOT / "sample_models" / "gpt.py")
LLAMA = {
    "layers": "3", "width": "1024", "heads": "8", "kv_heads": "8", "ffn": "4096", "vocab": "8000", "context": "512",
    "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": "false", "tied": "false",
}  # fmt: skip
MODELS = {
    "gpt": Request(target=GPT, batch_size=4, seq_len=512, args={"layers": "3"}),
    "llama": Request(target=GPT, batch_size=2, seq_len=512, args=LLAMA),
    "hf:gpt2": Request(target="hf:gpt2", batch_size=4, seq_len=256),
}
SEQUENCE = ("tensor.sequence_parallel=true", "tensor.keep_gathered=true")
SPLIT_LOSS = ("tensor.loss_parallel=true",)
FSDP = ("sharding.strategy=zero3", "precision.compute=bfloat16", "precision.param=float32", "precision.reduce=float32")
WAYS = [
    ("gpt", 0, ("mesh.tp=2",)),
    ("gpt", 1, ("mesh.tp=2", *SPLIT_LOSS)),
    ("gpt", 0, ("mesh.tp=2", *SEQUENCE, *SPLIT_LOSS, "remat.policy=full")),
    ("gpt", 0, ("mesh.tp=2", "mesh.dp_replicate=4", "sharding.strategy=ddp")),
    ("hf:gpt2", 0, ("mesh.tp=2",)),
    ("gpt", 0, ("mesh.tp=2", *SEQUENCE, "compression.bits=4")),
    ("llama", 1, ("mesh.tp=2", *SEQUENCE, *SPLIT_LOSS, "offload.activations=all")),
    ("llama", 5, ("mesh.tp=2", "mesh.dp_replicate=4", "sharding.strategy=ddp", "offload.optimizer=true")),
    ("llama", 7, ("mesh.tp=8", *SEQUENCE, *SPLIT_LOSS)),
    ("llama", 0, ("mesh.tp=2", "mesh.dp_shard=4", "sharding.strategy=zero3")),
    ("llama", 37, ("mesh.tp=8", "mesh.dp_shard=8", *SEQUENCE, *SPLIT_LOSS, *FSDP)),
    ("llama", 63, ("mesh.tp=8", "mesh.dp_shard=8", *SEQUENCE, *SPLIT_LOSS, *FSDP, "remat.policy=full")),
]
"""Model, rank that runs, plan."""


@cache
def plain(model):
    """The step on one GPU, as recorded without one."""
    return run(replace(MODELS[model], device="fake", gpu=GPU), cache=cache_folder(os.environ))[0]


@pytest.mark.parametrize(
    ("model", "rank", "settings"), WAYS, ids=lambda it: " ".join(it) if isinstance(it, tuple) else None
)
def test_a_rank_needs_what_its_pass_says(model, rank, settings):
    if model.startswith("hf:"):
        pytest.importorskip("transformers")
    plan = change(Plan(), settings)
    # GIVEN the plain step, rewritten
    [found] = rewrite(plain(model), plan)
    found.check()
    held = replay_on(found, find_device(GPU))
    # WHEN the same plan is applied, and one rank runs
    ran = verify(MODELS[model], plan, find_device(GPU), cache=cache_folder(os.environ), rank=rank)
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
