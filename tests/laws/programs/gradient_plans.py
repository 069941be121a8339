"""Ways to send gradients that two ranks try, and what one sees of a bucket on its way."""

DDP = ("mesh.dp_replicate=2", "sharding.strategy=ddp")
STEPS, WARMUP = 6, 2


def _way(compression, *more):
    return (*DDP, f"gradients.compression={compression}", *more)


PLANS = {
    "ddp": DDP,
    "float16": _way("float16"),
    "bfloat16": _way("bfloat16"),
    "topk": _way("topk", "gradients.density=0.05"),
    "dgc": _way("dgc", "gradients.density=0.05", "optimizer.name=sgd"),
    "qsgd": _way("qsgd"),
    "qsgd, 4 bits": _way("qsgd", "gradients.bits=4"),
    "terngrad": _way("terngrad"),
    "signsgd": _way("signsgd"),
    "onebit": _way("onebit"),
    "powersgd": _way("powersgd", "gradients.rank=2"),
    "topk, zero1": ("mesh.dp_shard=2", "sharding.strategy=zero1", "gradients.compression=topk"),
    "topk, accumulated": _way("topk", "batch.accumulation=2"),
    "local, 1 step": (*DDP, "gradients.local_steps=1", "optimizer.name=sgd"),
    "local, 2 steps": (*DDP, "gradients.local_steps=2", "optimizer.name=sgd"),
    "sgd": (*DDP, "optimizer.name=sgd"),
}
"""Each by its `--set`."""
