"""Prediction = execution: a step rewritten in other types, or recorded in them, against the model that runs in them."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest
import torch

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan, Precision
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.target import resolve
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
SAMPLES = ROOT / "sample_models"
SIZES = {"layers": "4", "width": "256", "heads": "4", "vocab": "8192", "context": "256"}
REQUESTS = {
    "gpt": Request(target=str(SAMPLES / "gpt.py"), batch_size=4, seq_len=256, args=SIZES),
    "vit": Request(target=str(SAMPLES / "vit.py"), batch_size=16, args={"precision": "float32", "layers": "4"}),
}

LLAMA = {
    "hidden_size": "512", "num_hidden_layers": "3", "num_attention_heads": "8", "num_key_value_heads": "4",
    "intermediate_size": "1536", "vocab_size": "16000", "max_position_embeddings": "512",
}  # fmt: skip
RECORDED = {
    "llama": Request(target="hf:llama", batch_size=4, seq_len=256, args=LLAMA),
    "gpt": REQUESTS["gpt"],
    "unet": Request(target=str(SAMPLES / "unet.py"), batch_size=4),
    "mlp": Request(target=str(SAMPLES / "mlp.py"), batch_size=64),
}
"""The first casts its logits to float32 in its own code, the second's convolutions have other workspaces."""
MIXED = (
    "precision.compute=bfloat16", "precision.param=float32", "precision.reduce=float32", "sharding.strategy=zero3",
    "mesh.dp_shard=8",
)  # fmt: skip
WAYS = [
    ("llama", ("precision.compute=bf16_amp",)),
    ("llama", ("precision.compute=bfloat16",)),
    ("llama", MIXED),
    ("llama", ("precision.compute=bfloat16", "precision.param=float32", "precision.grad=float32")),
    ("gpt", ("precision.compute=bfloat16", "precision.param=float32")),
    ("unet", ("precision.compute=bf16_amp",)),
    ("mlp", ("precision.compute=fp16_amp",)),
]


@cache
def plain_step(name):
    """The model's step in float32, as recorded without a GPU."""
    origin = Origin(gpu=GPU, versions={"torch": torch.__version__})
    return profile_fake(resolve(REQUESTS[name]), steps=2, origin=origin, on_step=lambda _: None)[0]


@pytest.mark.parametrize("compute", ["bf16_amp", "fp16_amp", "bfloat16"])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_step_in_other_types_needs_what_the_pass_says(name, compute):
    # GIVEN the float32 step  WHEN it is rewritten, and the model really runs so
    plan = Plan(precision=Precision(compute=compute))
    [found] = rewrite(plain_step(name), plan)
    found.check()
    held = replay_on(found, find_device(GPU))
    ran = verify(REQUESTS[name], plan, find_device(GPU), cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.02)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)


@pytest.mark.parametrize(("name", "settings"), WAYS, ids=lambda it: it if isinstance(it, str) else " ".join(it))
def test_a_step_recorded_in_other_types_needs_what_it_says(name, settings):
    # GIVEN a model whose step is recorded in the types of a plan  WHEN the plan is done to the model
    plan, device, kept = change(Plan(), settings), find_device(GPU), cache_folder(os.environ)
    if "hf:" in RECORDED[name].target:
        pytest.importorskip("transformers")
    asked = replace(RECORDED[name], device="fake", gpu=GPU, compute=plan.precision.compute)
    [found] = rewrite(run(asked, gpu=device, cache=kept)[0], plan)
    held = replay_on(found, device)
    ran = verify(RECORDED[name], plan, device, cache=kept)
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.01)
