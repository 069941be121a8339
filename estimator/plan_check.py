"""What a plan may say: values that exist, counts, and the rules between fields (`plan_rules`, `plan_pipeline`)."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.keep_text import parse_keep
from dnnmem.estimator.plan_pipeline import check_pipeline
from dnnmem.estimator.plan_rules import (
    check_cell,
    check_compression,
    check_context,
    check_degrees,
    check_experts,
    check_gradients,
    check_offload,
    check_sharding,
    check_tensor,
)

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan

OPTIMIZERS = (
    "sgd", "momentum", "adamw", "adafactor", "adamw8bit", "adamw8bit_bnb", "lion", "lamb", "lars", "muon", "shampoo",
    "soap", "galore",
)  # fmt: skip
"""Names of `Optimizer.name`."""
_CHOICES = {
    ("precision", "compute"): ("float32", "tf32", "bf16_amp", "fp16_amp", "bfloat16", None),
    ("precision", "linear"): ("float8", None),
    ("context", "method"): ("all_gather", "ring", "ulysses"),
    ("optimizer", "name"): (*OPTIMIZERS, None),
    ("optimizer", "state"): ("bfloat16", "float16", None),
    ("optimizer", "kernel"): ("for_loop", "foreach", "fused", None),
    ("remat", "policy"): ("none", "full", "every", "selective", "attention", "segments", "ops"),
    ("compression", "bits"): (8, 4, 2, None),
    ("sharding", "strategy"): ("none", "ddp", "zero1", "zero2", "zero3"),
    ("offload", "activations"): ("none", "all", "every", "blocks", "conv"),
    ("kernels", "fusion"): ("none", "hand", "blocks", "pointwise"),
}
_DTYPES = ("float32", "float16", "bfloat16", None)


def check_all(plan: Plan) -> None:
    """Raise `UsageError` unless every value is one that exists and the fields agree; the message states the rule."""
    for (part, name), known in _CHOICES.items():
        value = getattr(getattr(plan, part), name)
        if value not in known:
            named = ", ".join(str(choice) for choice in known if choice is not None)
            raise UsageError(f"{part}.{name} is {value!r}; it is one of {named}")
    for name in ("param", "grad", "reduce"):
        if getattr(plan.precision, name) not in _DTYPES:
            raise UsageError(
                f"precision.{name} is {getattr(plan.precision, name)!r}; it is float32, float16 or bfloat16"
            )
    counts = [("mesh", f.name) for f in fields(plan.mesh)] + [
        ("batch", "micro_batch"), ("batch", "accumulation"), ("loss", "chunks"), ("remat", "every"),
        ("sharding", "bucket_mib"), ("offload", "every"), ("pipeline", "chunks"),
    ]  # fmt: skip
    for part, name in counts:
        value = getattr(getattr(plan, part), name)
        if value is not None and value < 1:
            raise UsageError(f"{part}.{name} is {value}; it is 1 or more")
    for name, policy in (("segments", "segments"), ("keep", "ops")):
        if (plan.remat.policy == policy) != bool(text := getattr(plan.remat, name)):
            raise UsageError(
                f"remat.{name} is {text!r} under policy {plan.remat.policy}; it goes with policy {policy} alone"
            )
    check_cell(plan)
    if plan.remat.keep:
        parse_keep(plan.remat.keep)
    check_offload(plan.offload)
    check_compression(plan.compression)
    check_sharding(plan)
    check_gradients(plan)
    check_degrees(plan)
    check_tensor(plan)
    check_context(plan)
    check_experts(plan)
    check_pipeline(plan)
