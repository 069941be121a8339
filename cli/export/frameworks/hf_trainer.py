"""Keywords of `transformers.TrainingArguments`, as Python to paste.

FSDP2 recomputes through its own configuration, as the arguments' documentation asks; else the model does.
"""

from __future__ import annotations

from typing import Any

from dnnmem.cli.export.frameworks.ask import Ask, Fragment

_OPTIMIZERS = {
    "sgd": "sgd", "adamw": "adamw_torch", "adafactor": "adafactor", "adamw8bit": "adamw_torch_8bit",
    "adamw8bit_bnb": "adamw_bnb_8bit",
}  # fmt: skip


def render(ask: Ask) -> Fragment:
    """A dictionary `arguments` for `TrainingArguments(output_dir=..., **arguments)`."""
    said = {"mesh.dp_shard", "mesh.dp_replicate"}
    if ask.plan.mesh.dp_shard > 1 and ask.plan.mesh.dp_replicate > 1:
        said.discard("mesh.dp_replicate")
    values: dict[str, Any] = {**_sizes(ask, said), **_precision(ask, said), **_optimizer(ask, said)}
    values |= _sharding(ask, said)
    lines = ["# TrainingArguments(output_dir=..., **arguments)", "arguments = {"]
    lines += [f"    {name!r}: {value!r},".replace("'", '"') for name, value in values.items()]
    return ask.fragment([*lines, "}"], said)


def _sizes(ask: Ask, said: set[str]) -> dict[str, Any]:
    said |= {"batch.micro_batch", "batch.accumulation"}
    batch = ask.plan.batch
    size = {"per_device_train_batch_size": batch.micro_batch} if batch.micro_batch else {}
    return {**size, "gradient_accumulation_steps": batch.accumulation}


def _precision(ask: Ask, said: set[str]) -> dict[str, Any]:
    compute = ask.plan.precision.compute
    if ask.mixed is not None:
        said |= {"precision.compute", "precision.param"}
    if compute in {"tf32", "float32"}:
        return {"tf32": compute == "tf32"}
    return {ask.mixed: True} if ask.mixed else {}


def _optimizer(ask: Ask, said: set[str]) -> dict[str, Any]:
    chosen = ask.plan.optimizer
    if chosen.name is None and chosen.kernel != "fused":
        return {}
    name = _OPTIMIZERS.get(chosen.name or "adamw")
    if name is None:
        return {}
    said.add("optimizer.name")
    if name == "adamw_torch" and chosen.kernel == "fused":
        said.add("optimizer.kernel")
        name = "adamw_torch_fused"
    if name == "adamw_torch" and chosen.kernel == "foreach":
        said.add("optimizer.kernel")  # torch's own choice on a GPU
    return {"optim": name}


def _sharding(ask: Ask, said: set[str]) -> dict[str, Any]:
    plan = ask.plan
    sharding, policy = plan.sharding, plan.remat.policy
    values: dict[str, Any] = {}
    again = policy in {"full", "every"}
    if sharding.strategy in {"zero2", "zero3"} and plan.mesh.dp_shard > 1:
        said |= {"sharding.strategy", "sharding.reshard_after_forward"}
        config: dict[str, Any] = {"version": 2}
        config["reshard_after_forward"] = sharding.strategy == "zero3" and sharding.reshard_after_forward
        if ask.blocks:
            config["transformer_layer_cls_to_wrap"] = list(ask.blocks)
        if policy == "full":
            said.add("remat.policy")
            config["activation_checkpointing"] = True
            again = False
        values = {"fsdp": True, "fsdp_config": config}
    elif sharding.strategy in {"none", "ddp"}:
        said |= {"sharding.strategy", "sharding.bucket_mib"}
        values = {"ddp_bucket_cap_mb": sharding.bucket_mib} if sharding.strategy == "ddp" else {}
    if again:
        said |= {"remat.policy", "remat.every"}
        values["activation_checkpointing"] = True
        values["activation_checkpointing_kwargs"] = {"use_reentrant": False}
        if policy == "every":
            values["activation_checkpointing_kwargs"]["every_n_layers"] = plan.remat.every
    return values
