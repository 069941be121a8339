"""InternEvo's published throughput of InternLM 7B: ZeRO-1 within groups, tensor parallelism, micro-batches, A100 80 GB.

RMSNorm, rotary positions, SwiGLU, fused attention; bfloat16 with float32 master weights. Its nodes have four 100 Gb/s
cards, as the packaged p4de nodes do. The rows of peaks name no sequence length.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator import plan as p
from dnnmem.estimator.validation.case import GPT, Case, decoder
from dnnmem.estimator.validation.cells import divided, is_true, number, positive, whole

COLUMNS = ("zero1", "micro_bsz", "micro_num", "fsdp", "tokens_per_gpu_s")
"""What marks the table."""


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    rate, seq = positive(row, "tokens_per_gpu_s"), positive(row, "seq")
    reason = ""
    if not rate or not seq:
        reason = "no sequence length is stated, and no throughput"
    elif row.get("model") != "InternLM-7B" or not row.get("gpu", "").startswith("A100-SXM4-80GB, 4x100Gb"):
        reason = f"{row.get('model')} on {row.get('gpu')}: its sizes or its nodes are not known"
    elif is_true(row, "fsdp"):
        reason = "how its FSDP shards is not stated"
    gpu = "a100-sxm-80gb"
    if reason:
        return Case(gpu=gpu, reason=reason)
    batch, pieces, gpus, tp, pp = (whole(row, name) for name in ("micro_bsz", "micro_num", "ngpu", "tp", "pp"))
    args, layers = decoder(
        layers=32, heads=32, width=4096, ffn=11008, vocab=103_168, context=whole(row, "seq"), norm="rms", mlp="swiglu",
        positions="rope", bias=False, tied=False, dtype="bfloat16",
    )  # fmt: skip
    ranks = divided(gpus, tp * pp, "GPUs over tp * pp")
    shard = ranks if number(row, "zero1") == -1 else min(ranks, whole(row, "zero1"))
    plan = p.Plan(
        mesh=p.Mesh(dp_replicate=divided(ranks, shard, "data ranks over zero1"), dp_shard=shard, tp=tp, pp=pp),
        batch=p.Batch(micro_batch=batch, accumulation=pieces),
        precision=p.Precision(param="float32"),
        tensor=p.Tensor(loss_parallel=tp > 1),
        remat=p.Remat(policy="full" if is_true(row, "activation_ckpt") else "none"),
        sharding=p.Sharding(strategy="zero1" if ranks > 1 else "none", even_parts=True),
        pipeline=p.Pipeline(buffers=False),
    )
    seconds = batch * pieces * (seq or 0) / (rate or 1) / (tp * pp)
    return Case(
        target=GPT, target_args=args, batch=batch, seq=whole(row, "seq"),
        layers=layers, plan=plan, cluster=f"p4de:{divided(gpus, 8, 'GPUs over nodes of 8')}", gpu=gpu,
        measured_seconds=seconds,
    )  # fmt: skip
