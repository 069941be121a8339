"""A whole training script by the plan, with PyTorch alone: FSDP2 or DDP, recomputation, precision, accumulation.

The script stands by itself: it reads the user's file (or builds the named architecture), and does to the model what
`dnnmem.apply` would. What only `dnnmem.apply` can do (segments of several blocks, offloading) is listed as left out.
"""

from __future__ import annotations

from typing import Any

from dnnmem.cli.export.frameworks.ask import Ask, Fragment
from dnnmem.cli.export.frameworks.models import model_parts
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes.remat import PRODUCTS

MOST_ON_HOST = 128 << 30
"""Bytes of parameters, all ranks of a machine together, above which a model is built without memory."""
_SHARDED = ("zero2", "zero3")
_KEPT = {"full": "its input", "every": "its input", "selective": "products and attention"}
_AMP = {"bf16_amp": "torch.bfloat16", "fp16_amp": "torch.float16"}
_SAID = {
    "mesh.dp_shard", "mesh.dp_replicate", "batch.micro_batch", "batch.accumulation", "sharding.strategy",
    "sharding.bucket_mib", "sharding.reshard_after_forward", "sharding.keep_last", "precision.compute",
    "precision.param", "precision.reduce", "optimizer.kernel", "remat.keep_attention", "remat.every",
}  # fmt: skip


def render(ask: Ask) -> Fragment:
    """The script. Raises `UsageError` without a model, `UnsupportedError` for degrees that it cannot do."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    plan = ask.plan
    if ask.request is None:
        raise UsageError("a whole script needs a model", hint="dnnmem export model.py --batch 8 --to fsdp2 ...")
    if plan.mesh.world_size != plan.mesh.data_ranks or plan.sharding.strategy == "zero1":
        raise UnsupportedError(
            "the script does data parallelism by DDP and FSDP2 only; the plan has other degrees, or zero1",
            hint="--to torchtitan or megatron, or dnnmem.apply in a script of your own",
        )
    said = set(_SAID) | ({"remat.policy"} if plan.remat.policy in _KEPT else set())
    if plan.optimizer.name in {None, "sgd", "adamw", "adafactor"}:
        said.add("optimizer.name")
    left = ask.left_out(said)
    environment = Environment(  # noqa: S701 - the result is Python, not HTML
        loader=PackageLoader("dnnmem.cli.export.frameworks"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    parts = model_parts(ask)
    values = {**_values(ask), **parts, "provenance": ask.provenance(left)}
    return Fragment(text=environment.get_template("fsdp2.py.j2").render(values), left_out=left)


def _values(ask: Ask) -> dict[str, Any]:
    plan = ask.plan
    precision, remat, sharding = plan.precision, plan.remat, plan.sharding
    shards = sharding.strategy in _SHARDED and ask.world_size > 1
    again = remat.policy if remat.policy in _KEPT else ""
    masters = precision.compute == "bfloat16" and precision.param == "float32"
    whole = precision.compute == "bfloat16" and not (shards and masters)
    words = {"full": "each block", "every": f"one block in {remat.every}", "selective": "each block"}
    bytes_ = ask.param_bytes or 0
    launcher = (
        f"torchrun --nnodes {ask.nodes} --nproc-per-node {ask.ranks_per_node}" if ask.world_size > 1 else "python"
    )
    return {
        "command": f"{launcher} train.py",
        "blocks": repr(set(ask.blocks)) if ask.blocks else "set()",
        "accumulation": plan.batch.accumulation,
        "steps": 10,
        "world_size": ask.world_size,
        "again": words.get(again, ""),
        "kept": _KEPT.get(again, ""),
        "every": remat.every if again == "every" else 1,
        "selective": again == "selective",
        "keep_attention": remat.keep_attention,
        "products": tuple(sorted(PRODUCTS)),
        "shards": shards,
        "ddp": sharding.strategy == "ddp" and ask.world_size > 1,
        "bucket_mib": sharding.bucket_mib,
        "dp_replicate": plan.mesh.dp_replicate,
        "dp_shard": plan.mesh.dp_shard,
        "rest": f"torch.{precision.param}" if shards and precision.param else "",
        "policy": _policy(ask, masters=masters),
        "reshard": sharding.strategy == "zero3" and sharding.reshard_after_forward,
        "keep_last": sharding.keep_last,
        "on_meta": shards and bytes_ * ask.ranks_per_node > MOST_ON_HOST,
        "tf32": {"tf32": True, "float32": False}.get(precision.compute or ""),
        "cast": "torch.bfloat16" if whole else "",
        "autocast": _AMP.get(precision.compute or "", ""),
        "scaled": precision.compute == "fp16_amp",
    }


def _policy(ask: Ask, *, masters: bool) -> str:
    precision = ask.plan.precision
    words = ["param_dtype=torch.bfloat16"] if masters else []
    wire = precision.reduce or precision.grad
    return ", ".join([*words, *([f"reduce_dtype=torch.{wire}"] if wire else [])])
