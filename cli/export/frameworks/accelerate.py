"""The file for `accelerate launch --config_file`: DDP, or FSDP2 with what it wraps.

Keys are those of accelerate's `ClusterConfig` and of the environment that it sets for `FullyShardedDataParallelPlugin`.
"""

from __future__ import annotations

from dnnmem.cli.export.frameworks.ask import Ask, Fragment

_SHARDED = ("zero2", "zero3")


def render(ask: Ask) -> Fragment:
    """YAML; accumulation is a note, since accelerate reads it from the script."""
    plan, said = ask.plan, {"mesh.dp_shard", "mesh.dp_replicate"}
    sharded = plan.sharding.strategy in _SHARDED and plan.mesh.dp_shard > 1
    kind = "FSDP" if sharded else "MULTI_GPU" if ask.world_size > 1 else "NO"
    lines = [
        "compute_environment: LOCAL_MACHINE",
        f"distributed_type: {kind}",
        f"num_machines: {ask.nodes}",
        f"num_processes: {ask.world_size}",
        "machine_rank: 0",
    ]
    if ask.mixed is not None:
        lines.append(f"mixed_precision: '{ask.mixed}'")  # a bare no is a boolean in YAML
        said |= {"precision.compute", "precision.param"} - ({"precision.compute"} & _tf32(ask))
    if sharded:
        lines += _fsdp(ask, said)
    elif plan.sharding.strategy in {"none", "ddp"}:
        said |= {"sharding.strategy"}
    if plan.batch.accumulation > 1 or plan.batch.micro_batch:
        said |= {"batch.accumulation", "batch.micro_batch"}
        words = f"gradient_accumulation_steps={plan.batch.accumulation}"
        size = plan.batch.micro_batch
        lines.append(f"# in the script: Accelerator({words})" + (f", DataLoader(batch_size={size})" if size else ""))
    return ask.fragment(lines, said)


def _tf32(ask: Ask) -> set[str]:
    return {"precision.compute"} if ask.plan.precision.compute == "tf32" else set()


def _fsdp(ask: Ask, said: set[str]) -> list[str]:
    plan = ask.plan
    said |= {"sharding.strategy", "sharding.reshard_after_forward"}
    reshard = plan.sharding.strategy == "zero3" and plan.sharding.reshard_after_forward
    lines = [
        "fsdp_config:",
        "  fsdp_version: 2",
        "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
        f"  fsdp_reshard_after_forward: {str(reshard).lower()}",
        "  fsdp_state_dict_type: SHARDED_STATE_DICT",
    ]
    if ask.blocks:
        lines.append(f"  fsdp_transformer_layer_cls_to_wrap: {','.join(ask.blocks)}")
    if plan.remat.policy == "full":
        said.add("remat.policy")
        lines.append("  fsdp_activation_checkpointing: true")
    if plan.mesh.dp_replicate > 1:
        lines += [
            "parallelism_config:",
            f"  parallelism_config_dp_replicate_size: {plan.mesh.dp_replicate}",
            f"  parallelism_config_dp_shard_size: {plan.mesh.dp_shard}",
            "  parallelism_config_tp_size: 1",
            "  parallelism_config_cp_size: 1",
        ]
    return lines
