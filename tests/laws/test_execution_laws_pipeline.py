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
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT
from tests.laws.run_plans import run_ranks

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
LLAMA = {
    "layers": "4", "width": "1024", "heads": "8", "kv_heads": "4", "ffn": "4096", "vocab": "8000", "context": "512",
    "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": "false", "tied": "false",
}  # fmt: skip
GPT2 = {"layers": "4", "width": "1024", "heads": "16", "vocab": "16000", "context": "512"}
MODELS = {
    name: Request(target=str(ROOT / "sample_models" / "gpt.py"), batch_size=2, seq_len=512, args=args)
    for name, args in {
        "llama": LLAMA, "gpt2": GPT2, "llama of 8": {**LLAMA, "layers": "8"}, "gpt2 of 8": {**GPT2, "layers": "8"},
    }.items()
}  # fmt: skip
"""Steps of fewer than 1,024 kernels send what may wait for one step or for two: those of 8 blocks are beyond that."""
TWO, FOUR = ("mesh.pp=2", "batch.accumulation=4"), ("mesh.pp=4", "batch.accumulation=8")
INTERLEAVED = ("pipeline.schedule=interleaved", "pipeline.chunks=2")
SHARDED = (*TWO, "mesh.dp_shard=2", "sharding.strategy=zero3")
MIXED = (*SHARDED, "precision.compute=bfloat16", "precision.param=float32", "precision.reduce=float32")
WAYS = [
    ("gpt2", TWO),
    ("llama", FOUR),
    ("llama", (*FOUR, "pipeline.schedule=zb_h1")),
    ("llama", (*TWO, "pipeline.schedule=gpipe")),
    ("llama", (*TWO, "remat.policy=full", "pipeline.cuts=1")),
    ("llama of 8", (*SHARDED, *INTERLEAVED)),
    ("gpt2", MIXED),
    ("llama", (*TWO, "mesh.tp=2")),
    ("llama", (*TWO, *INTERLEAVED)),
    ("llama", (*TWO, "pipeline.schedule=zbv", "pipeline.chunks=2")),
    ("gpt2 of 8", (*TWO, "pipeline.schedule=dualpipev", "pipeline.chunks=2")),
]
"""Of each, the first rank of every stage runs; those that it talks to run too."""


@cache
def plain(model):
    """The step on one GPU, as recorded without one."""
    return run(replace(MODELS[model], device="fake", gpu=GPU), cache=cache_folder(os.environ))[0]


@pytest.mark.parametrize(("model", "settings"), WAYS, ids=lambda it: " ".join(it) if type(it) is tuple else it)
def test_ranks_need_what_their_chunks_played_do(model, settings):
    plan = change(Plan(), settings)
    # GIVEN the plain step, cut into chunks, those of a rank played in the order of its schedule
    pipeline, m = plan.pipeline, plan.batch.accumulation
    grid = SCHEDULES[pipeline.schedule](plan.mesh.pp, m, pipeline.chunks)
    chunks = rewrite(plain(model), plan)
    steps = [stage_step(chunks, grid, stage, m) for stage in range(plan.mesh.pp)]
    for step in steps:
        step.check()
    played = [replay_on(step, find_device(GPU)) for step in steps]
    # WHEN the same ranks run PyTorch's schedule
    ran = run_ranks(MODELS[model], plan, range(0, plan.mesh.world_size, plan.mesh.world_size // plan.mesh.pp), GPU)
    # THEN the peaks agree
    assert [held.peak_allocated_bytes for held in played] == pytest.approx([peak[0] for peak in ran], rel=0.005)
    assert [held.peak_reserved_bytes for held in played] == pytest.approx([peak[1] for peak in ran], rel=0.02)
