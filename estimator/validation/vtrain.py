"""vTrain's tables of Megatron-DeepSpeed on A100s (Bang et al., MICRO 2024): one node, and 64 to 512 GPUs.

GPT in fp16, 1F1B, gradients all-reduced after the backward pass, nodes of eight A100 80 GB with 800 Gb/s between them,
as vTrain's own configurations say. Many nodes recompute every layer and pad the vocabulary to 51,200 words.

The table of one node does neither. Its times are no raw measurements: over micro-batch counts they lie on lines to
the last digit, as sums do: vTrain's predictor adds up the kernels of a model of one layer that it traced on one GPU,
the gaps between them too, and all-reduces of a table of nccl-tests (`estimator/traced_layer.py`). Layers of 2,048
and of 1,024 (four samples of 1,024 tokens) differ by 3.84 ms, in which the products of a recomputed layer would need
340 TFLOP/s of a GPU that has 312; and the head takes four times as long with tp 1 as with tp 2: vTrain's own model has
50,257 words, an odd number, and gives `50257 // tp` to a rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator.validation.case import Case
from dnnmem.estimator.validation.cells import positive, whole
from dnnmem.estimator.validation.megatron_gpt import VOCAB, Run, megatron_gpt

COLUMNS = ("global batch", "micro batch", "hidden size", "attention heads", "# layers", "iteration time (ms)")
"""What marks the tables."""
_GPUS_OF_A_NODE = 8
_WORDS = 50_257
"""GPT-2's, not padded: what vTrain's own model cuts into `50257 // tp`."""


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    milliseconds, tp = positive(row, "iteration time (ms)"), whole(row, "tensor parallelism")
    simulated = whole(row, "# GPUs") <= _GPUS_OF_A_NODE
    run = Run(
        layers=whole(row, "# layers"),
        heads=whole(row, "attention heads"),
        width=whole(row, "hidden size"),
        seq=whole(row, "sequence length"),
        micro_batch=whole(row, "micro batch"),
        global_batch=whole(row, "global batch"),
        dp=whole(row, "data parallelism"),
        tp=tp,
        pp=whole(row, "pipeline parallelism"),
        recompute="none" if simulated else "full",
        vocab=_WORDS // tp * tp if simulated else VOCAB,
    )
    return megatron_gpt(run, "hgx-a100-4nic", seconds=None if milliseconds is None else milliseconds / 1e3)
