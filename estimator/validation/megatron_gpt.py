"""Megatron's GPT of 2022, as several tables ran it.

Scores are written out, there is dropout, neighbours are fused by hand, and so is Adam (apex); fp16 with fp32 master
weights; gradients are all-reduced after the last backward pass; the cross entropy is split along the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnnmem.estimator import plan as p
from dnnmem.estimator.validation.case import GPT, Case, decoder
from dnnmem.estimator.validation.cells import divided

VOCAB = 51_200
"""GPT-2's 50,257 words padded for eight ranks."""
GPU = "a100-sxm-80gb"
"""What all of them ran on."""
_GPUS_OF_A_NODE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One configuration."""

    layers: int
    """Of the whole model."""
    heads: int
    """Of attention."""
    width: int
    """Hidden size; the perceptron's is four times that."""
    seq: int
    """Tokens of a sample."""
    micro_batch: int
    """Samples of one pass."""
    global_batch: int
    """Samples of a step."""
    dp: int
    """Replicas."""
    tp: int
    """Tensor parallel degree."""
    pp: int
    """Pipeline stages."""
    chunks: int = 1
    """Model chunks of a stage (interleaving)."""
    recompute: str = "none"
    """A policy of `plan.Remat`."""
    sequence_parallel: bool = False
    """Norms and dropouts split along the sequence."""
    vocab: int = VOCAB
    """Words, padding included."""


def megatron_gpt(run: Run, node: str, *, seconds: float | None) -> Case:
    """The case of `run` on so many `node`s as it needs. Raises `UsageError` for batches that do not divide."""
    args, layers = decoder(
        layers=run.layers, heads=run.heads, width=run.width, vocab=run.vocab, context=run.seq,
        attention="math", dropout=0.1, dtype="float16",
    )  # fmt: skip
    plan = p.Plan(
        mesh=p.Mesh(dp_replicate=run.dp, tp=run.tp, pp=run.pp),
        batch=p.Batch(
            micro_batch=run.micro_batch,
            accumulation=divided(
                run.global_batch, run.dp * run.micro_batch, "global batch over replicas and micro-batch"
            ),
        ),
        precision=p.Precision(param="float32"),
        tensor=p.Tensor(sequence_parallel=run.sequence_parallel, sequence_first=True, loss_parallel=run.tp > 1),
        remat=p.Remat(policy=run.recompute, early_stop=False),
        sharding=p.Sharding(strategy="ddp" if run.dp > 1 else "none", overlap=False),
        pipeline=p.Pipeline(schedule="interleaved" if run.chunks > 1 else "1f1b", chunks=run.chunks, buffers=False),
        optimizer=p.Optimizer(kernel="fused"),
        kernels=p.Kernels(fusion="hand"),
    )
    return Case(
        target=GPT, target_args=args, batch=run.micro_batch, seq=run.seq,
        layers=layers, plan=plan, gpu=GPU, cluster=f"{node}:{-(-plan.mesh.world_size // _GPUS_OF_A_NODE)}",
        measured_seconds=seconds,
    )  # fmt: skip
