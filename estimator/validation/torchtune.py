"""Rows that PyTorch's ao and torchtune publish.

Two state their whole configuration: full fine-tuning of Llama 3.2 3B in bfloat16 on one A100 with packed sequences, and
the same compiled. The others quantize, adapt (LoRA) or leave sizes out.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator import plan as p
from dnnmem.estimator.validation.case import GPT, Case, decoder
from dnnmem.estimator.validation.cells import positive, whole

COLUMNS = ("technique_cumulative", "peak_active_GiB", "throughput", "unit")
"""What marks the table."""

_FULL = {"+packed dataset": "none", "+compile": "pointwise"}
_GPU = "a100-sxm-80gb"


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    rate, peak = positive(row, "throughput"), positive(row, "peak_active_GiB")
    technique = row.get("technique_cumulative", "")
    usable = row.get("model", "").startswith("Llama 3.2 3B") and technique in _FULL and row.get("gpu") == "A100"
    if not usable or not rate or not peak:
        reason = "quantized, adapted or offloaded, which is not predicted yet, or the sizes are not stated"
        return Case(gpu=row.get("gpu", ""), reason=reason)
    batch, seq = whole(row, "batch"), whole(row, "seq")
    args, layers = decoder(
        layers=28, heads=24, width=3072, kv_heads=8, ffn=8192, vocab=128_256, context=seq, norm="rms", mlp="swiglu",
        positions="rope", bias=False, dtype="bfloat16",
    )  # fmt: skip
    return Case(
        target=GPT, target_args=args, batch=batch, seq=seq, layers=layers,
        plan=p.Plan(batch=p.Batch(micro_batch=batch), kernels=p.Kernels(fusion=_FULL[technique])),
        cluster=f"{_GPU}:1", gpu=_GPU, measured_seconds=batch * seq / rate,
        measured_allocated_bytes=round(peak * 2**30),
    )  # fmt: skip
