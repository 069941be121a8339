"""Published tables that hold no step to predict, each with what they lack: they are recognised so as to say so."""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator.validation.case import Case

TABLES: Mapping[tuple[str, ...], tuple[str, str]] = {
    ("bench", "experiment", "chunks", "total_memory_GiB"): (
        "torchgpipe",
        "the rows of throughput name no batch, and those of memory sum over GPUs with U-Net and AmoebaNet cut by hand",
    ),
    ("file", "kind", "key", "value"): ("galvatron_profiles", "times of single layers, not of steps"),
    ("Quantization", "Microbatch size", "Max GPU RAM"): (
        "litgpt_resource",
        "LoRA, adapters and quantization are not predicted yet, and text lengths are not stated",
    ),
    ("Train Type", "Context Length", "Peak Memory (GiB)"): ("fsdp_qlora_2024", "QLoRA is not predicted yet"),
    ("kernel_name", "kernel_provider", "metric_name"): (
        "liger_kernel_benchmarks",
        "single kernels, not steps: benchmarks/ compares them op by op",
    ),
    ("record", "last_step_avg_ms", "code_sha1"): (
        "modded_nanogpt_logs",
        "each row is a program of its own, its source in the log: benchmarks/modded_nanogpt_rows.py runs them",
    ),
    ("measured_max_gpu_MiB", "neurons"): ("gpumemnet_horus_mlp", "optimizer, batch and GPU are not stated"),
    ("timm_model", "measured_max_gpu_MiB"): (
        "gpumemnet_timm_faketensor",
        "optimizer, precision and GPU are not stated",
    ),
    ("model", "mfu_pct", "hfu_pct"): ("megatron_readme_mfu", "utilisation without batch or GPUs gives no time"),
}
"""Columns that mark a table: its name, and why none of its rows can be predicted."""


def read(row: Mapping[str, str], reason: str) -> Case:
    """The case of one row of a table."""
    return Case(gpu=row.get("gpu") or row.get("GPU") or "", reason=reason)
