"""torchtitan's published runs of Llama, Qwen3 and DeepSeek: FSDP2 with tensor or context parallelism, times and peaks.

RMSNorm, rotary positions as complex numbers, grouped keys and values, fused causal attention, fp32 cross entropy.
Weights, gradients and AdamW's states are float32 shards; what is computed and gathered is bfloat16. Tensor parallelism
comes with sequence parallelism and a split loss, context parallelism gathers keys and values at once. flex_attention is
taken for flash. The 16B DeepSeek-V3 has the shape of DeepSeek-V2-Lite, and is recorded as transformers
has that, whose experts weigh their results in bfloat16 where torchtitan does so in float32. What the table leaves out
follows from its day, by the project's history.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dnnmem.estimator import plan as p
from dnnmem.estimator.validation.case import FLASH, GPT, Case, decoder
from dnnmem.estimator.validation.cells import divided, number, positive, whole

COLUMNS = ("local_bs", "dp_shard", "activation_ckpt", "torch_compile", "float8", "tps_per_gpu")
"""What marks the table."""

_GPUS = (
    ("H100 SXM HBM2e", "h100-sxm-96gb-hbm2e-500w"), ("H200", "h200-sxm"), ("H100", "h100-sxm-80gb"),
    ("A100", "a100-sxm-80gb"), ("B200 178", "b200-sxm"),
)  # fmt: skip
"""How the cell begins, and the name in `specs/`."""
_RECOMPUTE = {
    "none": "none", "full": "full", "selective op": "selective", "selective (eager)": "selective",
    "unstated (likely selective op)": "selective",
}  # fmt: skip
_DENSE, _MIXTURES = ("llama", "qwen3"), {"deepseek_v3-16B": "hf:deepseek-v2-lite"}
"""How a dense model's name begins; mixtures of experts, and what has their shape."""
_NOTES = {
    "STEP 1": "the first step is measured, before the optimizer's states exist",
    "memory-leak": "a commit that leaked memory",
    "#1344": "the peak is disputed in an issue of the project",
}
"""What a note says, and why that cannot be predicted."""
_TRACED = ("SimpleFSDP", "compiler_toolkit", "graph_trainer")
"""Ways of torchtitan's experiments to run a model."""

_EXPANDABLE, _DROPS, _FUSED, _SPLIT, _LOSS = "2024-10-22", "2024-06-12", "2025-02-24", "2025-07-28", "2025-04-02"
"""Days of commits (a5e57e4a9, e29b6b4d4, 6e4988550, 83e694105, bbb1b616e): run_train.sh asks for expandable segments;
the logits are dropped before the backward pass; AdamW is fused; embedding and head are groups of FSDP by themselves;
the loss is compiled too, where blocks are."""
_UNLISTED = ("2025-10-09", "2025-12-01")
"""From 6a3a9da95 attention runs by cuDNN, until b39377f9f selective recompute does not keep what that makes."""


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    gpu = next((name for start, name in _GPUS if row.get("gpu", "").startswith(start)), "")
    seconds, reserved = _seconds(row), number(row, "peak_reserved_GiB")
    measured = Case(
        gpu=gpu or row.get("gpu", ""), reason=next(_reasons(row, gpu), ""),
        measured_seconds=seconds, measured_reserved_bytes=None if reserved is None else round(reserved * 2**30),
        out_of_memory=row.get("peak_reserved_GiB") == "OOM",
    )  # fmt: skip
    return measured if measured.reason else _usable(row, measured)


def _usable(row: Mapping[str, str], measured: Case) -> Case:
    seq, batch = whole(row, "seq"), whole(row, "local_bs")
    target, args, layers = _mixture(row) if row["model"] in _MIXTURES else _decoder(row, seq)
    return Case(
        target=target, target_args=args, batch=batch, seq=seq, layers=layers,
        allocator="expandable_segments:True" if _day(row) >= _EXPANDABLE else "", out_of_memory=measured.out_of_memory,
        plan=_plan(row), cluster=f"{measured.gpu}:{whole(row, 'ngpu')}", gpu=measured.gpu,
        measured_seconds=measured.measured_seconds, measured_reserved_bytes=measured.measured_reserved_bytes,
        rates=FLASH if _day(row) < _UNLISTED[0] or "flex" in row.get("note", "") else {},
    )  # fmt: skip


def _decoder(row: Mapping[str, str], seq: int) -> tuple[str, tuple[str, ...], int | None]:
    qwen = row["model"].startswith("qwen3")
    args, layers = decoder(
        layers=whole(row, "layers"), heads=whole(row, "heads"), width=whole(row, "dim"),
        kv_heads=whole(row, "kv_heads"), ffn=whole(row, "ffn"), vocab=whole(row, "vocab"), context=seq, norm="rms",
        mlp="swiglu", positions="rope", bias=False, tied=False, dtype="bfloat16",
        **({"qk_norm": True, "head_dim": 128} if qwen else {}),
    )  # fmt: skip
    return GPT, args, layers


def _mixture(row: Mapping[str, str]) -> tuple[str, tuple[str, ...], int | None]:
    """All blocks are recorded: the first has no experts. A note may say that the run had other words."""
    said = re.search(r"vocab (\d+) in this run", row.get("note", ""))
    words = int(said[1]) if said else whole(row, "vocab")
    return _MIXTURES[row["model"]], (f"vocab_size={words}", "dtype=bfloat16"), None


def _plan(row: Mapping[str, str]) -> p.Plan:
    shard, tp, cp, batch = (whole(row, name) for name in ("dp_shard", "tp", "cp", "local_bs"))
    replicas = divided(whole(row, "ngpu"), shard * tp * cp, "GPUs over dp_shard * tp * cp")
    accumulation = max(1, divided(whole(row, "global_bs"), batch * shard * replicas, "global batch over local batches"))
    reshard, compiled, day = row.get("reshard_after_forward", ""), row.get("torch_compile", ""), _day(row)
    fusion = "blocks" if compiled == "True" and day < _LOSS else "pointwise"
    return p.Plan(
        mesh=p.Mesh(dp_replicate=replicas, dp_shard=shard, tp=tp, cp=cp),
        batch=p.Batch(micro_batch=batch, accumulation=accumulation, keep_output=day < _DROPS),
        precision=p.Precision(param="float32", grad="float32", reduce="float32"),
        tensor=p.Tensor(sequence_parallel=tp > 1, keep_gathered=tp > 1, loss_parallel=tp > 1),
        remat=p.Remat(policy=_RECOMPUTE[row["activation_ckpt"]], keep_attention=not _UNLISTED[0] <= day < _UNLISTED[1]),
        sharding=p.Sharding(
            strategy="zero3" if shard > 1 else "ddp" if replicas > 1 else "none",
            reshard_after_forward=reshard != "never",
            keep_last=reshard != "always",
            split_root=day >= _SPLIT,
        ),
        optimizer=p.Optimizer(kernel="fused" if day >= _FUSED else None),
        kernels=p.Kernels(
            fusion=fusion if compiled == "True" or "inductor" in compiled else "none",
            graphs="cudagraph" in compiled,
        ),
    )


def _day(row: Mapping[str, str]) -> str:
    """`2025-02-05`, the end of a month if no day is known; late if nothing is. torch was 2.7.0a0 until March 2025."""
    found = re.search(r"(20\d\d)-?(\d\d)(?:-?(\d\d))?", row.get("version", "").replace("2.7.0a0", "2025-03"))
    return f"{found[1]}-{found[2]}-{found[3] or '31'}" if found else "9999"


def _seconds(row: Mapping[str, str]) -> float | None:
    """Of a step: the global batch over the published tokens per second, or as derived in the table."""
    derived = positive(row, "step_time_s_derived")
    rate, gpus, batch, seq = (positive(row, name) for name in ("tps_per_gpu", "ngpu", "global_bs", "seq"))
    return derived or (batch * seq / (rate * gpus) if rate and gpus and batch and seq else None)


def _reasons(row: Mapping[str, str], gpu: str) -> Iterator[str]:
    """Why a row cannot be predicted."""
    said, note = row.get("activation_ckpt", ""), row.get("note", "")
    way = " ".join((note, row.get("version", ""), row.get("torch_compile", "")))
    float8 = row.get("float8", "").strip()
    if not row.get("model", "").startswith(_DENSE) and row.get("model") not in _MIXTURES:
        yield f"{row.get('model')}: no model of that name is known here"
    if float8:
        kind = "asynchronous tensor parallelism" if float8 == "+ AsyncTP" else f"{float8}: float8 and the like"
        yield f"{kind} is not predicted yet"
    if number(row, "pp") != 1 or number(row, "ep") != 1:
        yield "its pipelines, and its expert parallelism, are not predicted yet"
    if any(mark in way for mark in _TRACED):
        yield "FSDP as ops of one traced graph (SimpleFSDP), which a compiler places, is not predicted"
    if not gpu:
        yield f"no packaged NVIDIA GPU is {row.get('gpu')!r}"
    if said not in _RECOMPUTE:
        yield f"activation checkpointing {said!r} does not say what is recomputed"
    if "offload" in said or row.get("optimizer") != "AdamW" or row.get("loss_impl") != "full CE (fp32 logits)":
        yield f"{row.get('optimizer')} with {row.get('loss_impl')} is not predicted yet"
    if row.get("config_confidence") == "low":
        yield "the configuration is only guessed"
    yield from (why for mark, why in _NOTES.items() if mark in note)
