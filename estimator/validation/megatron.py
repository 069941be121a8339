"""Reducing Activation Recomputation in Large Transformer Models (Korthikanti et al. 2022), table 5.

It holds iteration times measured on Selene, with full recompute, and with sequence parallelism and selective recompute.
The memory of the paper's figures is its formula, which measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator.validation.case import Case
from dnnmem.estimator.validation.cells import positive, whole
from dnnmem.estimator.validation.megatron_gpt import GPU, Run, megatron_gpt

COLUMNS = ("hidden", "tensor_par", "pipeline_par", "data_par", "microbatch_size", "pipeline_interleaving")
"""What marks the table."""


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    seconds = positive(row, "iteration_time_s")
    if seconds is None:
        reason = "nothing is measured: the memory is the paper's formula, and there is no time"
        return Case(gpu=GPU, reason=reason)
    mode = row.get("mode", "")
    run = Run(
        layers=whole(row, "layers"),
        heads=whole(row, "heads"),
        width=whole(row, "hidden"),
        seq=whole(row, "seq"),
        micro_batch=whole(row, "microbatch_size"),
        global_batch=whole(row, "batch_size"),
        dp=whole(row, "data_par"),
        tp=whole(row, "tensor_par"),
        pp=whole(row, "pipeline_par"),
        chunks=whole(row, "pipeline_interleaving"),
        recompute="full" if "full" in mode else "attention" if "selective" in mode else "none",
        sequence_parallel="sequence parallel" in mode,
    )
    return megatron_gpt(run, "selene", seconds=seconds)
