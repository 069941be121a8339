"""Prediction = execution for pipelines: ranks of PyTorch's schedules on a virtual GPU against their chunks, played.

What is allocated is equal but for small change; so is what is reserved, where lists of events are.
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
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.stage_memory import stage_step
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
LLAMA = {
    "layers": "4", "width": "1024", "heads": "8", "kv_heads": "4", "ffn": "4096", "vocab": "8000", "context": "512",
    "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": "false", "tied": "false",
}  # fmt: skip
GPT2 = {"layers": "4", "width": "1024", "heads": "16", "vocab": "16000", "context": "512"}
MODELS = {
    name: Request(target=str(ROOT / "sample_models" / "gpt.py"), batch_size=2, seq_len=512, args=args)
    for name, args in {"llama": LLAMA, "gpt2": GPT2}.items()
}
TWO, FOUR = ("mesh.pp=2", "batch.accumulation=4"), ("mesh.pp=4", "batch.accumulation=8")
SHARDED = (*TWO, "mesh.dp_shard=2", "sharding.strategy=zero3")
MIXED = (*SHARDED, "precision.compute=bfloat16", "precision.param=float32", "precision.reduce=float32")
WAYS = [
    ("gpt2", TWO, 0),
    ("gpt2", TWO, 1),
    ("llama", FOUR, 1),
    ("llama", FOUR, 3),
    ("llama", (*FOUR, "pipeline.schedule=zb_h1"), 1),
    ("llama", (*FOUR, "pipeline.schedule=zb_h1"), 3),
    ("llama", (*TWO, "pipeline.schedule=gpipe"), 1),
    ("llama", (*TWO, "remat.policy=full", "pipeline.cuts=1"), 1),
    ("llama", SHARDED, 2),
    ("gpt2", MIXED, 0),
    ("llama", (*TWO, "mesh.tp=2"), 2),
    ("llama", (*TWO, "pipeline.schedule=zbv", "pipeline.chunks=2"), 1),
]


@cache
def plain(model):
    """The step on one GPU, as recorded without one."""
    return run(replace(MODELS[model], device="fake", gpu=GPU), cache=cache_folder(os.environ))[0]


@pytest.mark.parametrize(("model", "settings", "rank"), WAYS, ids=lambda it: " ".join(it) if type(it) is tuple else it)
def test_a_rank_needs_what_its_chunk_played_does(model, settings, rank):
    plan = change(Plan(), settings)
    # GIVEN the plain step, cut into chunks, those of a rank played in the order of its schedule
    pipeline, m = plan.pipeline, plan.batch.accumulation
    grid = SCHEDULES[pipeline.schedule](plan.mesh.pp, m, pipeline.chunks)
    stage = rank // (plan.mesh.world_size // plan.mesh.pp)
    step = stage_step(rewrite(plain(model), plan), grid, stage, m)
    step.check()
    held = replay_on(step, find_device(GPU))
    # WHEN the same rank runs PyTorch's schedule
    ran = verify(MODELS[model], plan, find_device(GPU), rank=rank, cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
