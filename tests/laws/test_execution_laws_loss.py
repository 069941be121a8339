"""Prediction = execution: a loss by chunks, and one fused with the head, against the model that takes it so."""

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
REQUESTS = {
    "gpt": Request(
        target=str(ROOT / "sample_models" / "gpt.py"), batch_size=4, seq_len=256,
        args={"layers": "4", "width": "256", "heads": "4", "vocab": "8192", "context": "256"},
    ),
    "llama": Request(
        target="hf:llama", batch_size=4, seq_len=256,
        args={
            "hidden_size": "512", "num_hidden_layers": "3", "num_attention_heads": "8", "num_key_value_heads": "4",
            "intermediate_size": "1536", "vocab_size": "16000", "max_position_embeddings": "512",
        },
    ),
    "gpt2": Request(
        target="hf:gpt2", batch_size=4, seq_len=512,
        args={"n_embd": "768", "n_layer": "6", "n_head": "12", "vocab_size": "50257", "n_positions": "512"},
    ),
    "resnet": Request(target=str(ROOT / "sample_models" / "resnet.py"), batch_size=16),
}  # fmt: skip
CHUNKED, FUSED = ("loss.chunks=8",), ("loss.chunks=8", "loss.fused=true")
WAYS = [
    ("gpt", CHUNKED),
    ("gpt", FUSED),
    ("gpt", (*CHUNKED, "batch.accumulation=2")),
    ("gpt", (*FUSED, "precision.compute=bf16_amp")),
    ("llama", CHUNKED),
    ("llama", (*FUSED, "remat.policy=full")),
    ("llama", (*FUSED, "precision.compute=bfloat16")),
    ("llama", (*CHUNKED, "mesh.dp_shard=4", "sharding.strategy=zero3")),
    ("gpt2", CHUNKED),
    ("resnet", FUSED),
]


@cache
def recorded(name, compute):
    """The step in the types that it computes in."""
    asked = replace(REQUESTS[name], device="fake", gpu=GPU, compute=compute)
    return run(asked, gpu=find_device(GPU), cache=cache_folder(os.environ))[0]


@pytest.mark.parametrize(("name", "settings"), WAYS, ids=lambda it: it if isinstance(it, str) else " ".join(it))
def test_a_loss_by_chunks_needs_what_the_pass_says(name, settings):
    # GIVEN a plain step  WHEN its loss is taken by chunks, and the unmodified model really does so
    if "hf:" in REQUESTS[name].target:
        pytest.importorskip("transformers")
    plan, device = change(Plan(), settings), find_device(GPU)
    [found] = rewrite(recorded(name, plan.precision.compute), plan)
    found.check()
    held = replay_on(found, device)
    ran = verify(REQUESTS[name], plan, device, cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
