"""Models whose sequences several ranks share, and the plans by which they do: `--set` each, by number of ranks."""

from tests.laws.programs.tensor_plans import build, loss_of

__all__ = ["PLANS", "build", "loss_of"]
CP = ("mesh.cp=2",)
ULYSSES = ("context.method=ulysses",)
RING = ("context.method=ring",)
FSDP = ("sharding.strategy=zero3",)
PLANS = {
    2: {
        "gpt, gathered": CP,
        "gpt, ring": (*CP, *RING),
        "gpt, ulysses": (*CP, *ULYSSES),
        "llama, gathered, zero3": (*CP, *FSDP),
        "llama, ring, recompute": (*CP, *RING, *FSDP, "remat.policy=full"),
        "hf llama, ulysses": (*CP, *ULYSSES),
        "hf llama, ring, recompute": (*CP, *RING, "remat.policy=full"),
    },
    4: {
        "gpt, ring": ("mesh.cp=4", *RING),
        "gpt, ulysses": ("mesh.cp=4", *ULYSSES),
        "gpt, beside ddp": (*CP, *RING, "mesh.dp_replicate=2", "sharding.strategy=ddp"),
        "llama, beside zero1": (*CP, *ULYSSES, "mesh.dp_shard=2", "sharding.strategy=zero1"),
        "llama, beside zero3, recompute": (*CP, *RING, "mesh.dp_shard=2", *FSDP, "remat.policy=full"),
        "llama, ring, beside tp": (*CP, *RING, "mesh.tp=2"),
        "llama, ulysses, beside tp, zero3": (*CP, *ULYSSES, "mesh.tp=2", *FSDP),
    },
}  # fmt: skip
"""By number of ranks; the first words name the model."""
