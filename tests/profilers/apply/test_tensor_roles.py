"""What tensor parallelism splits is told by HF's plan, or by names and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.profilers.apply.tensor_roles import find_roles
from sample_models import gpt

SMALL = {"vocab": 96, "context": 16, "width": 32, "layers": 2, "heads": 4}


class Moe(nn.Module):
    """A router over experts of two layers."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(4))


def test_fused_queries_keys_and_values_are_three_things():
    roles = find_roles(gpt.make_model(**SMALL))
    assert roles.columns == {
        "blocks.0.attention.qkv": (32, 32, 32), "blocks.0.mlp.0": (128,),
        "blocks.1.attention.qkv": (32, 32, 32), "blocks.1.mlp.0": (128,),
    }  # fmt: skip
    assert roles.rows == ("blocks.0.attention.out", "blocks.0.mlp.2", "blocks.1.attention.out", "blocks.1.mlp.2")
    assert (roles.tables, roles.head, roles.assumed) == (("tokens",), "head", True)


def test_gates_and_fewer_keys_are_columns():
    roles = find_roles(gpt.make_model(**SMALL, kv_heads=2, mlp="swiglu", tied=False))
    first = {name.removeprefix("blocks.0."): parts for name, parts in roles.columns.items() if ".0." in name}
    assert first == {
        "attention.q": (32,), "attention.k": (16,), "attention.v": (16,), "mlp.gate": (128,), "mlp.up": (128,),
    }  # fmt: skip


def test_a_router_has_no_partner_and_stays_whole():
    model = nn.Sequential(nn.Sequential(Moe(), Moe()))
    roles = find_roles(model)
    assert len(roles.columns) == len(roles.rows) == 8
    assert not any("router" in name for name in roles.columns)


def test_blocks_without_pairs_have_no_roles():
    assert find_roles(nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))).rows == ()


def test_hf_models_say_it_themselves():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    with torch.device("meta"):
        roles = find_roles(transformers.LlamaForCausalLM(config))
    assert not roles.assumed
    assert roles.rows[:2] == ("model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj")
    assert (roles.tables, roles.head) == (("model.embed_tokens",), "lm_head")
