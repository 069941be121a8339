"""Models whose experts several ranks share, and the plans by which they do: `--set` each, with the ranks it takes."""

import torch

SIZES = {
    "vocab_size": 98, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
STEPS = 2
ZERO3 = ("sharding.strategy=zero3",)
PLANS = {
    2: {
        "mixtral, ep 2": ("mesh.dp_shard=2", "mesh.ep=2", *ZERO3),
        "qwen3_moe, ep 2": ("mesh.dp_shard=2", "mesh.ep=2", *ZERO3),
        "deepseek_v2, ep 2": ("mesh.dp_shard=2", "mesh.ep=2", *ZERO3),
        "gpt_oss, ep 2": ("mesh.dp_shard=2", "mesh.ep=2", *ZERO3),
        "mixtral eager, ep 2": ("mesh.dp_shard=2", "mesh.ep=2", *ZERO3),
        "mixtral, ep 2, recompute": ("mesh.dp_shard=2", "mesh.ep=2", *ZERO3, "remat.policy=full"),
        "mixtral, ep 2, gathered once": ("mesh.dp_shard=2", "mesh.ep=2", "sharding.strategy=zero2"),
        "mixtral, ep 2, room for all": ("mesh.dp_shard=2", "mesh.ep=2", *ZERO3, "experts.capacity=4.0"),
    },
    4: {
        "mixtral, ep 4": ("mesh.dp_shard=4", "mesh.ep=4", *ZERO3),
        "qwen3_moe, ep 2 of 4": ("mesh.dp_shard=4", "mesh.ep=2", *ZERO3),
        "mixtral, ep 2, cp 2": ("mesh.dp_shard=2", "mesh.ep=2", "mesh.cp=2", *ZERO3),
        "qwen3_moe, ep 2, two replicas": ("mesh.dp_replicate=2", "mesh.dp_shard=2", "mesh.ep=2", *ZERO3),
    },
}  # fmt: skip
"""By number of ranks; the first word names the model."""
TYPES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 8},
    "deepseek_v2": {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24,
        "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}  # fmt: skip
"""What each type of transformers is given besides `SIZES`."""


def build(way):
    """The model, its optimizer, and batches for all ranks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, *how = way.split(",")[0].split()
    config = AutoConfig.for_model(kind, **{**SIZES, **TYPES[kind]})
    config._experts_implementation = how[0] if how else "grouped_mm"
    config.use_cache = False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    for p in model.parameters():  # some classes leave experts as they find the memory
        torch.nn.init.normal_(p, std=0.1)
    batches = [torch.randint(SIZES["vocab_size"], (4, 16)) for _ in range(STEPS)]
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2), batches


def loss_of(model, tokens):
    """The sample's loss, that of the model's own."""
    return model(input_ids=tokens, labels=tokens).loss
