"""Arguments of Megatron-LM's `pretrain_*.py`: degrees, sizes, recomputation, schedule.

Names are those of Megatron's `megatron/training/arguments.py` and its argument groups.
"""

from __future__ import annotations

from dnnmem.cli.export.frameworks.ask import Ask, Fragment

_DEGREES = (
    ("tp", "tensor-model-parallel-size"),
    ("pp", "pipeline-model-parallel-size"),
    ("cp", "context-parallel-size"),
    ("ep", "expert-model-parallel-size"),
)

_SCHEDULES = frozenset({"1f1b", "dapple", "interleaved"})
"""What its stages do by themselves."""


def render(ask: Ask) -> Fragment:
    """One argument a line, for a shell array; data ranks are what the GPUs leave over."""
    plan, said = ask.plan, {"mesh", "sharding.strategy", "pipeline.chunks", "pipeline.scatter_gather"}
    if plan.pipeline.schedule in _SCHEDULES:
        said.add("pipeline.schedule")
    arguments = [f"--{name} {getattr(plan.mesh, degree)}" for degree, name in _DEGREES]
    if plan.pipeline.chunks > 1:
        arguments.append(f"--num-virtual-stages-per-pipeline-rank {plan.pipeline.chunks}")
    if plan.tensor.sequence_parallel:
        arguments.append("--sequence-parallel")
    said |= {"tensor", "batch.accumulation", "batch.micro_batch"}
    if plan.batch.micro_batch:
        arguments += [f"--micro-batch-size {plan.batch.micro_batch}", f"--global-batch-size {ask.global_batch}"]
    arguments += _sharding(ask, said) + _remat(ask, said) + _types(ask, said)
    if plan.offload.optimizer:
        said.add("offload.optimizer")
        arguments += ["--optimizer-cpu-offload", "--overlap-cpu-optimizer-d2h-h2d"]
    return ask.fragment(["MODEL_ARGUMENTS=(", *(f"    {argument}" for argument in arguments), ")"], said)


def _sharding(ask: Ask, said: set[str]) -> list[str]:
    sharding = ask.plan.sharding
    found = []
    if sharding.strategy == "zero1":
        found.append("--use-distributed-optimizer")
    if sharding.strategy in {"zero2", "zero3"}:
        whole = sharding.strategy == "zero3" and sharding.reshard_after_forward
        said.add("sharding.reshard_after_forward")
        found += [
            "--use-megatron-fsdp",
            "--use-distributed-optimizer",
            f"--data-parallel-sharding-strategy {'optim_grads_params' if whole else 'optim_grads'}",
        ]
    if found or sharding.strategy == "ddp":
        said.add("sharding.overlap")
        if sharding.overlap:
            found.append("--overlap-grad-reduce")
    return found


def _remat(ask: Ask, said: set[str]) -> list[str]:
    policy = ask.plan.remat.policy
    if policy in {"full", "attention"}:
        said |= {"remat.policy", "remat.early_stop"}
    if policy == "full":
        return ["--recompute-granularity full", "--recompute-method uniform", "--recompute-num-layers 1"]
    return ["--recompute-granularity selective", "--recompute-modules core_attn"] if policy == "attention" else []


def _types(ask: Ask, said: set[str]) -> list[str]:
    precision = ask.plan.precision
    said |= {"precision.grad", "precision.reduce"} if precision.grad in {None, "float32"} else set()
    if precision.compute in {"bf16_amp", "bfloat16"}:
        said |= {"precision.compute", "precision.param"}
        return ["--bf16"]
    if precision.compute == "fp16_amp":
        said.add("precision.compute")
        return ["--fp16"]
    return []
