"""vTrain's measurements of Megatron-DeepSpeed on A100s (Bang et al., MICRO 2024): one node, and 64 to 512 GPUs.

GPT in fp16 with every layer recomputed, 1F1B, gradients all-reduced after the backward pass. Nodes of eight A100 80 GB
with 800 Gb/s between them, as vTrain's own configurations say; the vocabulary is padded to 51,200 words.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator.validation.case import Case
from dnnmem.estimator.validation.cells import positive, whole
from dnnmem.estimator.validation.megatron_gpt import Run, megatron_gpt

COLUMNS = ("global batch", "micro batch", "hidden size", "attention heads", "# layers", "iteration time (ms)")
"""What marks the tables."""


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    milliseconds = positive(row, "iteration time (ms)")
    run = Run(
        layers=whole(row, "# layers"),
        heads=whole(row, "attention heads"),
        width=whole(row, "hidden size"),
        seq=whole(row, "sequence length"),
        micro_batch=whole(row, "micro batch"),
        global_batch=whole(row, "global batch"),
        dp=whole(row, "data parallelism"),
        tp=whole(row, "tensor parallelism"),
        pp=whole(row, "pipeline parallelism"),
        recompute="full",
    )
    return megatron_gpt(run, "hgx-a100-4nic", seconds=None if milliseconds is None else milliseconds / 1e3)
