"""Throughput of MPT models that MosaicML published with llm-foundry: FSDP on A100s and H100s, sequences up to 65,536.

LayerNorm, GELU, ALiBi inside a fused attention kernel, no biases, output tied to the embedding. Weights and states are
float32 shards; what is computed and gathered is bfloat16, and gradients are reduced in float32 (`DEFAULT`) or bfloat16
(`PURE`). The table names a model and its parameters; its sizes are in the configurations beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dnnmem.estimator import plan as p
from dnnmem.estimator.validation.case import FLASH, GPT, Case, decoder
from dnnmem.estimator.validation.cells import is_true, positive, whole

COLUMNS = ("Throughput (T/s/GPU)", "GlobalBatchSize (T)", "MP Mode", "Sharding Strategy", "NumParams")
"""What marks the table."""

VOCAB = 50_368
_SIZES = {
    "125m": (768, 12, 12), "350m": (1024, 16, 24), "760m": (1536, 12, 24), "1b": (2048, 16, 24), "3b": (2560, 20, 32),
    "7b": (4096, 32, 32), "13b": (5120, 40, 40), "30b": (7168, 56, 48), "70b": (8192, 64, 80),
}  # fmt: skip
"""Width, heads and layers: llm-foundry, scripts/train/benchmarking and scripts/train/yamls."""
_GPUS = {"a100_40gb": "a100-sxm-40gb", "a100_80gb": "a100-sxm-80gb", "h100_80gb": "h100-sxm-80gb"}
_KEPT = {"FULL_SHARD": False, "SHARD_GRAD_OP": True}
"""Whether FSDP keeps gathered parameters until the backward pass."""


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    gpu = _GPUS.get(row.get("GPU", ""), row.get("GPU", ""))
    reason = next(_reasons(row), "")
    if reason:
        return Case(gpu=gpu, reason=reason, measured_seconds=_seconds(row))
    width, heads, layers = _SIZES[row["Model"]]
    seq, batch, gpus = whole(row, "SeqLen (T)"), whole(row, "MicroBatchSize"), whole(row, "# GPUs")
    args, more = decoder(
        layers=layers, heads=heads, width=width, vocab=VOCAB, positions="alibi", bias=False,
        dtype="bfloat16",
    )  # fmt: skip
    plan = p.Plan(
        mesh=p.Mesh(dp_shard=gpus),
        batch=p.Batch(micro_batch=batch, accumulation=whole(row, "GradAccum")),
        precision=p.Precision(
            param="float32", grad="float32", reduce="bfloat16" if row["MP Mode"] == "PURE" else "float32"
        ),
        remat=p.Remat(policy="full" if is_true(row, "Activation Checkpointing") else "none"),
        sharding=p.Sharding(
            strategy="zero3" if gpus > 1 else "none", reshard_after_forward=not _KEPT[row["Sharding Strategy"]]
        ),
    )
    return Case(
        target=GPT, target_args=args, batch=batch, seq=seq, layers=more, plan=plan,
        cluster=f"{gpu}:{gpus}", gpu=gpu, measured_seconds=_seconds(row), rates=FLASH,
    )  # fmt: skip


def _seconds(row: Mapping[str, str]) -> float | None:
    tokens, rate, gpus = (positive(row, c) for c in ("GlobalBatchSize (T)", "Throughput (T/s/GPU)", "# GPUs"))
    return tokens / gpus / rate if tokens and rate and gpus else None


def _reasons(row: Mapping[str, str]) -> Iterator[str]:
    """Why a row cannot be predicted: among others its own numbers must agree."""
    model, gpu = row.get("Model", ""), row.get("GPU", "")
    if "fp8" in row.get("Precision", ""):
        yield f"{row['Precision']}: float8 is not predicted yet"
    if is_true(row, "Activation CPUOffload"):
        yield "activations are offloaded to the host, which is not predicted yet"
    if model not in _SIZES or gpu not in _GPUS:
        yield f"the sizes of {model!r} or the GPU {gpu!r} are not known"
    if row.get("Sharding Strategy") not in _KEPT:
        yield f"sharding {row.get('Sharding Strategy')!r} is not predicted"
    if _seconds(row) is None:
        yield "its throughput is missing"
    yield from _contradictions(row)


def _contradictions(row: Mapping[str, str]) -> Iterator[str]:
    model = row["Model"]
    width, _, layers = _SIZES[model]
    seq, total = whole(row, "SeqLen (T)"), positive(row, "NumParams") or 0
    expected = 12 * width**2 * layers + VOCAB * width + seq * width
    if abs(total / expected - 1) > 0.05:
        yield f"{total:g} parameters are published, but {model} with sequences of {seq} has about {expected:g}"
    pieces = whole(row, "MicroBatchSize") * whole(row, "GradAccum") * whole(row, "# GPUs") * seq
    tokens = positive(row, "GlobalBatchSize (T)") or 1
    if abs(pieces / tokens - 1) > 0.02:
        yield f"micro-batch * accumulation * GPUs * sequence is {pieces} tokens, but the step has {tokens:g}"
