"""Prediction = execution for experts on several ranks: the pass against ranks on a virtual GPU, routing balanced.

On a virtual GPU nobody computes what a router chooses: each expert is taken to be chosen equally often, in an order
that is always the same, and other ranks to send what this one sends, or as many times more as the plan says. What is
allocated is then equal to a few kB.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

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

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
DEEPSEEK = {
    "model_type": "deepseek_v2", "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 64, "moe_intermediate_size": 128,
    "n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "intermediate_size": 512, "vocab_size": 1024, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "max_position_embeddings": 2048, "dtype": "bfloat16",
}  # fmt: skip
SMALL = {
    "num_hidden_layers": "2", "hidden_size": "256", "num_attention_heads": "8", "num_key_value_heads": "4",
    "vocab_size": "1024", "num_local_experts": "8",
}  # fmt: skip
MIXTRAL = Request(target="hf:mixtral", batch_size=2, seq_len=256, args={**SMALL, "intermediate_size": "256"})
WIDER = {
    **SMALL, "num_hidden_layers": "4", "hidden_size": "512", "intermediate_size": "512", "vocab_size": "4096",
    "dtype": "bfloat16",
}  # fmt: skip
GPT_OSS = {**SMALL, "head_dim": "32", "intermediate_size": "128", "dtype": "bfloat16"}
ZERO3 = ("sharding.strategy=zero3",)
WAYS = [
    ("deepseek", 0, ("mesh.dp_shard=2", "mesh.ep=2", *ZERO3, "experts.capacity=1.25")),
    ("deepseek", 5, ("mesh.dp_replicate=2", "mesh.dp_shard=4", "mesh.ep=2", *ZERO3, "sharding.split_root=true")),
    ("deepseek", 0, ("mesh.dp_shard=64", "mesh.ep=8", *ZERO3, "remat.policy=full")),
    ("mixtral", 3, ("mesh.dp_shard=4", "mesh.ep=2", *ZERO3, "experts.imbalance=1.5")),
    ("wider", 0, ("mesh.dp_shard=2", "mesh.ep=2", "mesh.cp=2", *ZERO3)),
    ("wider", 1, ("mesh.pp=2", "mesh.dp_shard=2", "mesh.ep=2", *ZERO3, "batch.accumulation=4")),
    ("gpt_oss", 7, ("mesh.dp_shard=8", "mesh.ep=8", *ZERO3)),
]
"""Model, rank that runs, plan."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Requests by model, and the step of each on one GPU, as recorded without one."""
    folder = tmp_path_factory.mktemp("deepseek")
    (folder / "config.json").write_text(json.dumps(DEEPSEEK), "utf-8")
    requests = {
        "deepseek": Request(target=f"hf:{folder}", batch_size=2, seq_len=256),
        "mixtral": MIXTRAL,
        "wider": replace(MIXTRAL, seq_len=512, args=WIDER),
        "gpt_oss": replace(MIXTRAL, target="hf:gpt_oss", args=GPT_OSS),
    }
    known = {}

    def of(model):
        if model not in known:
            known[model] = run(replace(requests[model], device="fake", gpu=GPU), cache=cache_folder(os.environ))[0]
        return requests[model], known[model]

    return of


@pytest.mark.parametrize(("model", "rank", "settings"), WAYS)
def test_a_rank_needs_what_its_pass_says(model, rank, settings, plain):
    pytest.importorskip("transformers")
    plan = change(Plan(), settings)
    # GIVEN the plain step, rewritten
    request, step = plain(model)
    mesh, m = plan.mesh, plan.batch.accumulation
    found, *others = rewrite(step, plan)
    if others:
        found = stage_step([found, *others], SCHEDULES["1f1b"](mesh.pp, m, 1), rank // mesh.data_ranks, m)
    found.check()
    held = replay_on(found, find_device(GPU))
    # WHEN the same plan is applied, and one rank runs
    ran = verify(request, plan, find_device(GPU), cache=cache_folder(os.environ), rank=rank)
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.001)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.005)
