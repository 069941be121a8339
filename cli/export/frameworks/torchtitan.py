"""torchtitan's configuration, which is Python: a function that changes a model's `Trainer.Config`.

Names are those of `torchtitan/config/configs.py` and `torchtitan/distributed/activation_checkpoint.py` of August 2026.
"""

from __future__ import annotations

from dnnmem.cli.export.frameworks.ask import Ask, Fragment
from dnnmem.estimator.errors import UnsupportedError

_SCHEDULES = {
    "1f1b": "1F1B", "dapple": "1F1B", "gpipe": "GPipe", "interleaved": "Interleaved1F1B", "zbv": "ZBVZeroBubble",
    "dualpipev": "DualPipeV",
}  # fmt: skip
_AC = {"full": "FullAC", "selective": "SelectiveAC"}


def render(ask: Ask) -> Fragment:
    """A function `planned(config)`. Raises `UnsupportedError` for ZeRO-1, which torchtitan does not have."""
    plan, said = ask.plan, {"mesh", "sharding.strategy", "tensor.sequence_parallel"}
    if plan.sharding.strategy == "zero1":
        raise UnsupportedError(
            "sharding.strategy is zero1; torchtitan shards parameters too", hint="plan with sharding.strategy=zero3"
        )
    said |= {"tensor.loss_parallel", "tensor.keep_gathered", "pipeline.scatter_gather"}
    lines = _parallelism(ask, said) + _training(ask, said)
    imports = ["from torchtitan.trainer import Trainer"]
    found = _AC.get(plan.remat.policy)
    if found:
        said |= {"remat.policy", "remat.keep_attention", "sharding.keep_last", "sharding.split_root"}
        imports.insert(0, f"from torchtitan.distributed.activation_checkpoint import {found}")
        lines.append(f"config.activation_checkpoint = {found}.Config()")
    elif plan.remat.policy == "none":
        lines.append("config.activation_checkpoint = None")
    said |= {"sharding.keep_last", "sharding.split_root"}
    body = [
        *imports, "", "",
        "def planned(config: Trainer.Config) -> Trainer.Config:",
        '    """`config` by the plan."""',
        *(f"    {line}" for line in lines),
        "    return config",
    ]  # fmt: skip
    return ask.fragment(body, said)


def _parallelism(ask: Ask, said: set[str]) -> list[str]:
    plan, mesh = ask.plan, ask.plan.mesh
    values = {
        "data_parallel_replicate_degree": mesh.dp_replicate,
        "data_parallel_shard_degree": mesh.dp_shard,
        "tensor_parallel_degree": mesh.tp,
        "pipeline_parallel_degree": mesh.pp,
        "context_parallel_degree": mesh.cp,
        "expert_parallel_degree": mesh.ep,
    }
    lines = [f"config.parallelism.{name} = {value}" for name, value in values.items()]
    if plan.sharding.strategy in {"zero2", "zero3"}:
        said.add("sharding.reshard_after_forward")
        always = plan.sharding.strategy == "zero3" and plan.sharding.reshard_after_forward
        lines.append(f'config.parallelism.fsdp_reshard_after_forward = "{"always" if always else "never"}"')
    if mesh.tp > 1:
        lines.append(f"config.parallelism.enable_sequence_parallel = {plan.tensor.sequence_parallel}")
    if mesh.pp > 1:
        if name := _SCHEDULES.get(plan.pipeline.schedule):
            said |= {"pipeline.schedule", "pipeline.chunks"}
            lines.append(f'config.parallelism.pipeline_parallel_schedule = "{name}"')
        lines.append(f"config.parallelism.num_pp_microbatches = {plan.batch.accumulation}")
        said.add("batch.accumulation")
    return lines


def _training(ask: Ask, said: set[str]) -> list[str]:
    plan, lines = ask.plan, []
    batch = plan.batch
    if batch.micro_batch:
        said |= {"batch.micro_batch", "batch.accumulation"}
        lines += [
            "sequence = config.training.max_context_length",
            f"config.training.num_tokens_per_microbatch_per_dp_rank = {batch.micro_batch} * sequence",
            f"config.training.num_tokens_per_train_step = {ask.global_batch} * sequence",
        ]
    precision = plan.precision
    if precision.compute in {"bf16_amp", "float32"} or (precision.compute, precision.param) == ("bfloat16", "float32"):
        said |= {"precision.compute", "precision.param"}
        kind = "float32" if precision.compute == "float32" else "bfloat16"
        lines.append(f'config.training.mixed_precision_param = "{kind}"')
    elif precision.compute == "bfloat16":
        said |= {"precision.compute", "precision.param"}
        lines.append('config.training.dtype = "bfloat16"')
    if precision.reduce == "float32":
        said.add("precision.reduce")  # torchtitan's only choice
    if plan.kernels.fusion == "blocks":
        said.add("kernels.fusion")
        lines.append("config.compile.enable = True")
    return lines
