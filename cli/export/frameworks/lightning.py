"""A `lightning.Trainer` by the plan, as Python to paste: DDP, or FSDP with what it wraps.

Lightning's `FSDPStrategy` is the older FSDP (one flat parameter a block): sharding is the same, peaks differ a little.
"""

from __future__ import annotations

from dnnmem.cli.export.frameworks.ask import Ask, Fragment

_PRECISION = {"bf16_amp": "bf16-mixed", "fp16_amp": "16-mixed", "bfloat16": "bf16-true", "float32": "32-true"}

_STRATEGIES = {
    (False, False): "FULL_SHARD",
    (False, True): "SHARD_GRAD_OP",
    (True, False): "HYBRID_SHARD",
    (True, True): "_HYBRID_SHARD_ZERO2",
}
"""Lightning's names by: replicated too, parameters kept after the forward pass."""


def render(ask: Ask) -> Fragment:
    """Python that makes `trainer`; blocks' classes are to be imported from the model's own module."""
    plan, said = ask.plan, {"mesh.dp_shard", "mesh.dp_replicate", "batch.accumulation"}
    imports = ["from lightning import Trainer"]
    values = [
        ("devices", str(ask.ranks_per_node)),
        ("num_nodes", str(ask.nodes)),
        ("accumulate_grad_batches", str(plan.batch.accumulation)),
    ]
    precision = _precision(ask, said)
    if precision:
        values.append(("precision", f'"{precision}"'))
    if plan.sharding.strategy in {"zero2", "zero3"} and plan.mesh.dp_shard > 1:
        imports.append("from lightning.pytorch.strategies import FSDPStrategy")
        values.append(("strategy", _fsdp(ask, said)))
    elif plan.sharding.strategy == "ddp":
        imports.append("from lightning.pytorch.strategies import DDPStrategy")
        said |= {"sharding.strategy", "sharding.bucket_mib"}
        values.append(("strategy", f"DDPStrategy(bucket_cap_mb={plan.sharding.bucket_mib})"))
    elif plan.sharding.strategy == "none":
        said.add("sharding.strategy")
    if plan.batch.micro_batch:
        said.add("batch.micro_batch")
        imports.append(f"# DataLoader(..., batch_size={plan.batch.micro_batch})")
    lines = [*imports, "", "trainer = Trainer(", *(f"    {name}={value}," for name, value in values), ")"]
    return ask.fragment(lines, said)


def _precision(ask: Ask, said: set[str]) -> str | None:
    precision = ask.plan.precision
    if precision.compute == "bfloat16" and precision.param == "float32":
        said |= {"precision.compute", "precision.param"}
        return "bf16-mixed"
    found = _PRECISION.get(precision.compute or "")
    if found:
        said.add("precision.compute")
    return found


def _fsdp(ask: Ask, said: set[str]) -> str:
    plan = ask.plan
    said |= {"sharding.strategy", "sharding.reshard_after_forward"}
    keeps = plan.sharding.strategy == "zero2" or not plan.sharding.reshard_after_forward
    hybrid = plan.mesh.dp_replicate > 1
    name = (
        ("_HYBRID_SHARD_ZERO2" if keeps else "HYBRID_SHARD") if hybrid else "SHARD_GRAD_OP" if keeps else "FULL_SHARD"
    )
    words = [f'sharding_strategy="{name}"']
    if hybrid:
        words.append(f"device_mesh=({plan.mesh.dp_replicate}, {plan.mesh.dp_shard})")
    blocks = f"{{{', '.join(ask.blocks)}}}" if ask.blocks else "{YourBlock}"
    words.append(f"auto_wrap_policy={blocks}")
    if plan.remat.policy == "full":
        said.add("remat.policy")
        words.append(f"activation_checkpointing_policy={blocks}")
    return f"FSDPStrategy({', '.join(words)})"
