"""Throughput of Llama 2 with IBM's fms-fsdp, and of Llama 3 with Megatron in float8, which is not predicted yet.

fms-fsdp compiles the step, shards within a node (HSDP) or over all GPUs (FSDP), and recomputes some of the blocks of
the larger models: the table does not say how many.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator import plan as p
from dnnmem.estimator.validation.case import GPT, Case, decoder
from dnnmem.estimator.validation.cells import divided, is_true, positive, whole

COLUMNS = ("sharding", "tokens_per_gpu_s", "micro_batch", "global_batch", "TFLOPS")
"""What marks the table."""

_NODES = {"A100 80G 400Gbps": ("p4de", "a100-sxm-80gb")}
"""A packaged node with the GPU and network of the cell."""


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    rate, gpu, reason = positive(row, "tokens_per_gpu_s"), row.get("gpu", ""), ""
    if row.get("precision"):
        reason = f"{row['precision']} is not predicted yet"
    elif row.get("activation_ckpt") != "none":
        reason = "'selective' recomputes every n-th block, and the table does not say n"
    elif gpu not in _NODES:
        reason = f"no packaged node has the GPU and network of {gpu!r}"
    elif row.get("model") != "llama2-7b" or row.get("sharding") != "HSDP" or not rate:
        reason = f"{row.get('model')} with {row.get('sharding')} is not known"
    if reason:
        return Case(gpu=gpu, reason=reason)
    node, name = _NODES[gpu]
    batch, seq, gpus = whole(row, "batch"), whole(row, "seq"), whole(row, "ngpu")
    args, layers = decoder(
        layers=32, heads=32, width=4096, kv_heads=32, ffn=11008, vocab=32_000, context=seq, norm="rms", mlp="swiglu",
        positions="rope", bias=False, tied=False, dtype="bfloat16",
    )  # fmt: skip
    nodes = divided(gpus, 8, "GPUs over nodes of 8")
    plan = p.Plan(
        mesh=p.Mesh(dp_replicate=nodes, dp_shard=8),
        batch=p.Batch(micro_batch=batch),
        precision=p.Precision(param="float32", grad="float32", reduce="bfloat16"),
        sharding=p.Sharding(strategy="zero3"),
        kernels=p.Kernels(fusion="pointwise" if is_true(row, "compile") else "none"),
    )
    return Case(
        target=GPT, target_args=args, batch=batch, seq=seq, layers=layers, plan=plan,
        cluster=f"{node}:{nodes}", gpu=name, measured_seconds=batch * seq / (rate or 1),
    )  # fmt: skip
