"""Models that several ranks split, and the plans by which they do: `--set` each, with the ranks that it takes."""

import torch

from sample_models import gpt

SIZES = {"vocab": 98, "context": 16, "width": 32, "layers": 2, "heads": 4}
STEPS = 2
TP = ("mesh.tp=2",)
SEQUENCE = ("tensor.sequence_parallel=true", "tensor.keep_gathered=true")
SPLIT_LOSS = ("tensor.loss_parallel=true",)
LLAMA = {"norm": "rms", "mlp": "swiglu", "positions": "rope", "kv_heads": 2, "bias": False, "tied": False}
PLANS = {
    2: {
        "gpt, plain": TP,
        "llama, plain": TP,
        "hf gpt2, plain": TP,
        "hf llama, plain": TP,
        "hf opt, plain": TP,
        "gpt, sequence": (*TP, *SEQUENCE),
        "llama, sequence": (*TP, *SEQUENCE),
        "hf gpt2, sequence": (*TP, *SEQUENCE),
        "hf llama, sequence": (*TP, *SEQUENCE),
        "hf opt, sequence": (*TP, *SEQUENCE),
        "gpt, split loss": (*TP, *SPLIT_LOSS),
        "llama, sequence, split loss": (*TP, *SEQUENCE, *SPLIT_LOSS),
        "hf gpt2, sequence, split loss": (*TP, *SEQUENCE, *SPLIT_LOSS),
        "gpt, recompute": (*TP, "remat.policy=full"),
        "gpt, sent": (*TP, "offload.activations=all", "offload.min_bytes=1"),
        "llama, sequence, sent": (*TP, *SEQUENCE, *SPLIT_LOSS, "offload.activations=all", "offload.min_bytes=1"),
        "gpt, masks as bits": (*TP, *SEQUENCE, "compression.masks=true"),
        "llama, sequence, recompute": (*TP, *SEQUENCE, *SPLIT_LOSS, "remat.policy=full"),
    },
    4: {
        "gpt, plain": ("mesh.tp=4",),
        "gpt, below ddp": (*TP, "mesh.dp_replicate=2", "sharding.strategy=ddp"),
        "llama, below ddp": (*TP, *SEQUENCE, "mesh.dp_replicate=2", "sharding.strategy=ddp"),
        "gpt, below ddp, recompute": (*TP, "mesh.dp_replicate=2", "sharding.strategy=ddp", "remat.policy=full"),
        "gpt, below zero1": (*TP, "mesh.dp_shard=2", "sharding.strategy=zero1"),
        "gpt, below zero2": (*TP, "mesh.dp_shard=2", "sharding.strategy=zero2"),
        "gpt, below zero3": (*TP, "mesh.dp_shard=2", "sharding.strategy=zero3"),
        "llama, below zero3": (*TP, *SEQUENCE, *SPLIT_LOSS, "mesh.dp_shard=2", "sharding.strategy=zero3"),
        "llama, below zero3, all on the host": (
            *TP, *SEQUENCE, *SPLIT_LOSS, "mesh.dp_shard=2", "sharding.strategy=zero3", "offload.activations=all",
            "offload.min_bytes=1", "offload.optimizer=true", "offload.parameters=true",
        ),
        "llama, below zero3, recompute": (
            *TP, *SEQUENCE, *SPLIT_LOSS, "mesh.dp_shard=2", "sharding.strategy=zero3", "remat.policy=full",
        ),
    },
}  # fmt: skip
"""By number of ranks; the first word names the model."""


def build(kind):
    """The model, its optimizer, and batches for all ranks."""
    if kind in {"gpt", "llama"}:
        torch.manual_seed(0)
        model = gpt.make_model(**SIZES, **(LLAMA if kind == "llama" else {}))
    else:
        from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
        config = {
            "hf gpt2": lambda: GPT2Config(
                vocab_size=98, n_positions=16, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                attn_pdrop=0.0,
            ),
            "hf llama": lambda: LlamaConfig(vocab_size=98, intermediate_size=64, num_key_value_heads=2, **sizes),
            "hf opt": lambda: OPTConfig(vocab_size=98, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0, **sizes),
        }[kind]()  # fmt: skip
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).train()
    batches = [gpt.make_batch(4, 16, SIZES["vocab"]) for _ in range(STEPS)]
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2), batches


def loss_of(model, batch):
    """The sample's loss, or transformers' own."""
    if hasattr(model, "generation_config"):
        return model(input_ids=batch[0], labels=batch[0]).loss
    return gpt.make_loss(model(batch[0]), batch)


def in_order(name, tensor, kind, tp):
    """A whole tensor, the rows or columns of several things made at once in the model's order again."""
    if not any(part in name for part in (".qkv.", ".c_attn.")):
        return tensor
    dim = -1 if kind.startswith("hf") else 0
    by_rank = [part.chunk(3, dim) for part in tensor.chunk(tp, dim)]
    return torch.cat([parts[n] for n in range(3) for parts in by_rank], dim)
