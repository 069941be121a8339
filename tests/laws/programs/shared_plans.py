"""The model that several ranks train together, and the plans by which they do."""

import torch

from sample_models import gpt

SIZES = {"vocab": 96, "context": 16, "width": 32, "layers": 3, "heads": 4}
STEPS = 3
SHARD = ("mesh.dp_shard=2",)
MASTERS = ("precision.compute=bfloat16", "precision.param=float32")
OPS = ("remat.policy=ops", "remat.keep=0:addmm.0.2,gelu/2:input")
PLANS = {
    "ddp": ("mesh.dp_replicate=2", "sharding.strategy=ddp"),
    "ddp, small buckets": ("mesh.dp_replicate=2", "sharding.strategy=ddp", "sharding.bucket_mib=1"),
    "ddp, views of buckets": ("mesh.dp_replicate=2", "sharding.strategy=ddp", "sharding.bucket_views=true"),
    "zero1, views of buckets": (*SHARD, "sharding.strategy=zero1", "sharding.bucket_views=true"),
    "zero1": (*SHARD, "sharding.strategy=zero1"),
    "zero2": (*SHARD, "sharding.strategy=zero2"),
    "zero3": (*SHARD, "sharding.strategy=zero3"),
    "zero3, two ahead": (*SHARD, "sharding.strategy=zero3", "sharding.prefetch=2"),
    "zero2, one ahead": (*SHARD, "sharding.strategy=zero2", "sharding.prefetch=1"),
    "zero3, reshard all": (*SHARD, "sharding.strategy=zero3", "sharding.keep_last=false"),
    "zero3, split root": (*SHARD, "sharding.strategy=zero3", "sharding.split_root=true"),
    "zero3, recompute": (*SHARD, "sharding.strategy=zero3", "remat.policy=full"),
    "zero3, recompute ops": (*SHARD, "sharding.strategy=zero3", *OPS),
    "ddp, recompute ops": ("mesh.dp_replicate=2", "sharding.strategy=ddp", *OPS),
    "zero1, updated on the host": (*SHARD, "sharding.strategy=zero1", "offload.optimizer=true"),
    "zero2, updated on the host": (*SHARD, "sharding.strategy=zero2", "offload.optimizer=true"),
    "zero3, updated on the host": (*SHARD, "sharding.strategy=zero3", "offload.optimizer=true"),
    "zero3, parameters on the host": (
        *SHARD,
        "sharding.strategy=zero3",
        "offload.optimizer=true",
        "offload.parameters=true",
    ),
    "ddp, updated on the host": ("mesh.dp_replicate=2", "sharding.strategy=ddp", "offload.optimizer=true"),
    "ddp, float16": ("mesh.dp_replicate=2", "sharding.strategy=ddp", "precision.compute=fp16_amp"),
    "zero3, float16": (*SHARD, "sharding.strategy=zero3", "precision.compute=fp16_amp"),
    "zero1, float16": (*SHARD, "sharding.strategy=zero1", "precision.compute=fp16_amp"),
    "zero1, float16, updated on the host": (
        *SHARD,
        "sharding.strategy=zero1",
        "precision.compute=fp16_amp",
        "offload.optimizer=true",
    ),
    "ddp, bfloat16 with masters": ("mesh.dp_replicate=2", "sharding.strategy=ddp", *MASTERS),
    "zero1, bfloat16 with masters": (*SHARD, "sharding.strategy=zero1", *MASTERS),
    "ddp, by a method": ("mesh.dp_replicate=2", "sharding.strategy=ddp"),
    "zero3, by a method": (*SHARD, "sharding.strategy=zero3"),
    "hsdp of one": ("mesh.dp_replicate=2", "sharding.strategy=zero3"),
}
"""Ways to train on two ranks, each by its `--set`."""


class WithLoss(gpt.GPT):
    """The model, with a method that a step may call instead of it."""

    def loss(self, batch):
        """The sample's loss, past the model's call."""
        return gpt.make_loss(self.forward(batch[0]), batch)


def build():
    """The model, its optimizer with two groups, and batches for all ranks."""
    torch.manual_seed(0)
    model = gpt.make_model(**SIZES, norm="rms", positions="rope", tied=False)
    model.__class__ = WithLoss
    named = list(model.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]
    batches = [gpt.make_batch(4, 16, SIZES["vocab"]) for _ in range(STEPS)]
    return model, torch.optim.AdamW(groups, lr=1e-2), batches


def loss_of(model, batch):
    """The sample's loss."""
    return gpt.make_loss(model(batch[0]), batch)
