"""Prediction = execution for what replicas send: passes over the plain step against rank 0 on a virtual GPU.

What is allocated is equal but for small change. What hooks keep comes in the third step, in the middle of a backward
pass; the cached blocks it finds there decide up to 3 % of what these small models reserve.
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
SMALL = {"layers": "4", "width": "512", "heads": "8", "vocab": "8000", "context": "512"}
MODELS = {
    "gpt": Request(target=str(ROOT / "sample_models" / "gpt.py"), batch_size=2, seq_len=512, args=SMALL, steps=6),
    "resnet": Request(target=str(ROOT / "sample_models" / "resnet.py"), batch_size=8, steps=6),
}
WAYS = [
    ("gpt", 8, "bfloat16", ()),
    ("gpt", 4, "bfloat16", ("mesh.tp=2",)),
    ("gpt", 8, "bfloat16", ("precision.compute=bfloat16", "precision.param=float32", "remat.policy=full")),
    ("gpt", 64, "topk", ()),
    ("gpt", 8, "dgc", ("optimizer.name=sgd",)),
    ("gpt", 2, "qsgd", ("gradients.bits=4",)),
    ("gpt", 8, "terngrad", ()),
    ("gpt", 64, "signsgd", ()),
    ("gpt", 2, "onebit", ()),
    ("gpt", 8, "powersgd", ("gradients.rank=4",)),
    ("gpt", 8, "none", ("gradients.local_steps=2",)),
    ("resnet", 8, "float16", ()),
    ("resnet", 2, "signsgd", ()),
    ("resnet", 8, "powersgd", ("gradients.rank=4",)),
]
HOLES = {("resnet", "powersgd"): 0.03}
"""Where other holes are left than the replay has: a miss of the 2 % that all others hold."""


@cache
def plain(model):
    """The step on one GPU, as recorded without one."""
    return run(replace(MODELS[model], device="fake", gpu=GPU), cache=cache_folder(os.environ))[0]


@pytest.mark.parametrize(("model", "ranks", "compression", "more"), WAYS, ids=str)
def test_a_rank_needs_what_its_pass_says(model, ranks, compression, more):
    ways = (f"mesh.dp_replicate={ranks}", "sharding.strategy=ddp", f"gradients.compression={compression}", *more)
    plan = change(Plan(), ways)
    # GIVEN the plain step, rewritten
    [found] = rewrite(plain(model), plan)
    found.check()
    held = replay_on(found, find_device(GPU))
    # WHEN the same plan is applied, and rank 0 runs
    ran = verify(MODELS[model], plan, find_device(GPU), cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=HOLES.get((model, compression), 0.02))
