"""Prediction = execution for models that are no plain stack of blocks: what `recommend` says is what rank 0 needs.

A U-Net has four lists of blocks with convolutions between them; a mixture of experts saves tensors for their shapes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.time_model import load
from dnnmem.profilers.record_sizes import record_sizes
from dnnmem.profilers.request import Request
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
CLUSTER = "h100-sxm-80gb:8"
MODELS = {
    "unet": Request(target=str(ROOT / "sample_models" / "unet.py"), batch_size=8, args={"width": "64"}),
    "moe": Request(
        target=str(ROOT / "sample_models" / "moe.py"), batch_size=4, seq_len=512,
        args={"layers": "4", "vocab": "8000"},
    ),
}  # fmt: skip
DDP = ("mesh.dp_replicate=8", "sharding.strategy=ddp")
ZERO3 = ("mesh.dp_shard=8", "sharding.strategy=zero3")
WAYS = [
    ("unet", DDP),
    ("unet", (*ZERO3, "remat.policy=full")),
    ("moe", (*DDP, "remat.policy=selective")),
    ("moe", (*ZERO3, "offload.activations=all")),
]


@cache
def costs(model):
    """Prices of the model's step, as `recommend` records it: at several sizes, few of many blocks."""
    where = find_cluster(CLUSTER)
    asked = replace(MODELS[model], device="fake", gpu=where.device.name)
    return Costs(recorded=record_sizes(asked, cache=cache_folder(os.environ)), cluster=where, model=load(where.device))


@pytest.mark.parametrize(("model", "settings"), WAYS, ids=lambda it: it if isinstance(it, str) else " ".join(it))
def test_a_priced_plan_needs_what_its_run_needs(model, settings):
    # GIVEN a plan as `recommend` prices it
    plan = change(Plan(), (f"batch.micro_batch={MODELS[model].batch_size}", *settings))
    found = costs(model).exact(plan)
    # WHEN it is applied, and rank 0 runs
    ran = verify(MODELS[model], plan, find_cluster(CLUSTER).device, cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert found.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert found.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
