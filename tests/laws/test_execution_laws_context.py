"""Prediction = execution for context parallelism: the pass against ranks on a virtual GPU.

In rings each rank computes with halves of its own: the first with those of queries, the last with those of keys, one in
the middle with both. What the last makes is never put together from halves, and is not copied.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.profilers.apply.context_ring import ring_of_torch
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
GPT = str(ROOT / "sample_models" / "gpt.py")
LLAMA = {
    "layers": "3", "width": "1024", "heads": "8", "kv_heads": "8", "ffn": "4096", "vocab": "8000", "context": "4096",
    "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": "false", "tied": "false", "dtype": "bfloat16",
}  # fmt: skip
QWEN3 = {
    "num_hidden_layers": "3", "hidden_size": "512", "intermediate_size": "1024", "num_attention_heads": "8",
    "num_key_value_heads": "4", "vocab_size": "4096", "dtype": "bfloat16",
}  # fmt: skip
NEOX = {
    "num_hidden_layers": "3", "hidden_size": "512", "num_attention_heads": "8", "intermediate_size": "2048",
    "vocab_size": "4096",
}  # fmt: skip
DEEPSEEK = {
    "num_hidden_layers": "2", "hidden_size": "256", "num_attention_heads": "4", "num_key_value_heads": "4",
    "kv_lora_rank": "64", "n_routed_experts": "8", "num_experts_per_tok": "2", "moe_intermediate_size": "128",
    "intermediate_size": "512", "vocab_size": "1024", "dtype": "bfloat16",
}  # fmt: skip
MODELS = {
    "gpt": Request(target=GPT, batch_size=4, seq_len=512, args={"layers": "3"}),
    "llama": Request(target=GPT, batch_size=2, seq_len=4096, args=LLAMA),
    "hf:qwen3": Request(target="hf:qwen3", batch_size=2, seq_len=1024, args=QWEN3),
    "hf:gpt_neox": Request(target="hf:gpt_neox", batch_size=2, seq_len=1024, args=NEOX),  # keys lie head by head
    "hf:deepseek-v2-lite": Request(  # keys are wider than values
        target="hf:deepseek-v2-lite", batch_size=1, seq_len=2048, args=DEEPSEEK
    ),
    "hf:gpt2": Request(target="hf:gpt2", batch_size=4, seq_len=256),
}
RING, ULYSSES = ("context.method=ring",), ("context.method=ulysses",)
WAYS = [
    ("gpt", 0, ("mesh.cp=2", *RING)),
    ("gpt", 1, ("mesh.cp=2", *ULYSSES)),
    ("llama", 4, ("mesh.cp=8", *RING, "remat.policy=full")),
    ("llama", 0, ("mesh.cp=2", *RING, "mesh.dp_shard=4", "sharding.strategy=zero3")),
    ("llama", 63, ("mesh.cp=8", *ULYSSES, "mesh.dp_shard=8", "sharding.strategy=zero3", "remat.policy=full")),
    ("llama", 13, ("mesh.cp=4", "mesh.tp=2", "mesh.dp_shard=2", "sharding.strategy=zero3")),
    ("hf:gpt2", 1, ("mesh.cp=2", *RING)),
    ("hf:gpt_neox", 1, ("mesh.cp=2", *RING)),
    ("hf:deepseek-v2-lite", 1, ("mesh.cp=4", *RING)),
    ("hf:deepseek-v2-lite", 0, ("mesh.cp=2", *ULYSSES)),
    ("hf:qwen3", 0, ("mesh.cp=2", *RING, "mesh.dp_shard=2", "sharding.strategy=zero3")),
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
    if settings[1:2] != ULYSSES:
        try:
            ring_of_torch()
        except UnsupportedError as error:
            pytest.skip(error.message)
    plan = change(Plan(), settings)
    # GIVEN the plain step, rewritten
    [found] = rewrite(plain(model), plan, rank=rank)
    found.check()
    held = replay_on(found, find_device(GPU))
    # WHEN the same plan is applied, and one rank runs
    ran = verify(MODELS[model], plan, find_device(GPU), cache=cache_folder(os.environ), rank=rank)
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
