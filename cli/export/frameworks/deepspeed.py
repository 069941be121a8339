"""The JSON that `deepspeed.initialize(config=...)` and the Trainers read: ZeRO stage, precision, sizes, offloading.

JSON has no comments: the provenance is an entry of its own, which DeepSpeed passes over.
"""

from __future__ import annotations

import json
from typing import Any

from dnnmem.cli.export.frameworks.ask import Ask, Fragment
from dnnmem.estimator.errors import UnsupportedError

_STAGES = {"none": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}


def render(ask: Ask) -> Fragment:
    """Raises `UnsupportedError` for degrees that DeepSpeed's file does not have."""
    plan, mesh = ask.plan, ask.plan.mesh
    if mesh.world_size != mesh.data_ranks:
        raise UnsupportedError(
            f"tp {mesh.tp}, pp {mesh.pp}, cp {mesh.cp} are no part of a DeepSpeed file", hint="--to megatron"
        )
    said = {"mesh.dp_shard", "mesh.dp_replicate", "sharding.strategy"}
    stage = _STAGES[plan.sharding.strategy]
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3 and not plan.sharding.reshard_after_forward:
        zero["stage"] = 2  # parameters stay gathered from the forward to the backward pass
    if stage and mesh.dp_replicate > 1:
        said.discard("mesh.dp_replicate")
    if stage:
        said |= {"sharding.reshard_after_forward", "sharding.overlap"}
        zero["overlap_comm"] = plan.sharding.overlap
        zero["contiguous_gradients"] = True
    if plan.offload.optimizer:
        said.add("offload.optimizer")
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {"zero_optimization": zero, "gradient_accumulation_steps": plan.batch.accumulation}
    said.add("batch.accumulation")
    if plan.batch.micro_batch:
        said.add("batch.micro_batch")
        config["train_micro_batch_size_per_gpu"] = plan.batch.micro_batch
        config["train_batch_size"] = ask.global_batch
    else:
        config["train_micro_batch_size_per_gpu"] = "auto"
    config |= _precision(ask, said)
    left = ask.left_out(said)
    text = json.dumps({"_provenance": ask.provenance(left), **config}, indent=2) + "\n"
    return Fragment(text=text, left_out=left)


def _precision(ask: Ask, said: set[str]) -> dict[str, Any]:
    precision = ask.plan.precision
    if precision.compute == "bfloat16" and precision.param == "float32":  # bf16 model, float32 masters in the shards
        said |= {"precision.compute", "precision.param"}
        return {"bf16": {"enabled": True}}
    if precision.compute in {"bf16_amp", "fp16_amp"}:
        said.add("precision.compute")
        kind = "bfloat16" if precision.compute == "bf16_amp" else "float16"
        return {"torch_autocast": {"enabled": True, "dtype": kind}}
    if precision.compute == "float32":
        said.add("precision.compute")
    return {}
