"""Pipelines of two models of real size: what passes say, and what first, middle and last ranks need.

    python benchmarks/pipeline_rows.py [--model NAME ...] [--only TEXT ...] [--stages N ...] [--save]

GPT-2 XL (1.6 billion parameters, 1,024 tokens, bf16 autocast) and a Llama-3-8B shape (2,048 tokens in bfloat16) on
virtual H100, with twice as many micro-batches as stages. --save writes the table into docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.stage_memory import stage_step
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "accuracy.md"
START, END = "<!-- pipeline rows -->", "<!-- end of pipeline rows -->"
GPU = find_device("h100-sxm-80gb")
SAMPLE = str(ROOT / "sample_models" / "gpt.py")
XL = {"layers": "48", "width": "1600", "heads": "25", "context": "1024"}
LLAMA_8B = {
    "layers": "32", "width": "4096", "heads": "32", "kv_heads": "8", "ffn": "14336", "vocab": "128256",
    "context": "2048", "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": "false", "tied": "false",
    "dtype": "bfloat16",
}  # fmt: skip
MODELS = {
    "GPT-2 XL": (Request(target=SAMPLE, batch_size=1, seq_len=1024, args=XL), ("precision.compute=bf16_amp",)),
    "Llama-3-8B": (Request(target=SAMPLE, batch_size=1, seq_len=2048, args=LLAMA_8B), ("remat.policy=full",)),
}
WAYS = {
    "1F1B": ("pipeline.schedule=1f1b",),
    "GPipe": ("pipeline.schedule=gpipe",),
    "interleaved": ("pipeline.schedule=interleaved", "pipeline.chunks=2"),
    "ZB-H1": ("pipeline.schedule=zb_h1",),
}
STAGES = (2, 8)
_HEAD = (
    "| model | schedule | stages | rank | reserved, GiB | of what is allocated | of what is reserved |",
    "|---|---|---:|---:|---:|---:|---:|",
)


def main() -> None:
    """Print a row as soon as it is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="*", default=list(MODELS))
    parser.add_argument("--only", nargs="*", default=list(WAYS))
    parser.add_argument("--stages", nargs="*", type=int, default=STAGES)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    lines = list(_HEAD)
    for model in given.model:
        for line in _rows(model, given.only, given.stages):
            print(line, flush=True)
            lines.append(line)
    if given.save:
        text, table = DOCS.read_text("utf-8"), "\n".join(lines)
        before, after = text.partition(START)[0], text.partition(END)[2]
        DOCS.write_text(f"{before}{START}\n{table}\n{END}{after}", "utf-8")


def _rows(model: str, ways: Sequence[str], stages: Sequence[int]) -> Iterator[str]:
    request, more = MODELS[model]
    cache = cache_folder(os.environ)
    plain = run(replace(request, device="fake", gpu=GPU.name), cache=cache)[0]
    for way in ways:
        for count in stages:
            plan = change(Plan(), (f"mesh.pp={count}", f"batch.accumulation={2 * count}", *WAYS[way], *more))
            chunks, pipeline, m = rewrite(plain, plan), plan.pipeline, plan.batch.accumulation
            grid = SCHEDULES[pipeline.schedule](count, m, pipeline.chunks)
            for rank in sorted({0, count // 2, count - 1}):
                held = replay_on(stage_step(chunks, grid, rank, m), GPU)
                ran = verify(request, plan, GPU, cache=cache, gradients=False, rank=rank)
                size = held.peak_reserved_bytes / 2**30
                if ran.peak_allocated_bytes is None or ran.peak_reserved_bytes is None:
                    off = f"{ran.outcome} | "
                else:
                    allocated = held.peak_allocated_bytes / ran.peak_allocated_bytes - 1
                    off = f"{allocated:+.2%} | {held.peak_reserved_bytes / ran.peak_reserved_bytes - 1:+.2%}"
                yield f"| {model} | {way} | {count} | {rank} | {size:.2f} | {off} |"


if __name__ == "__main__":
    main()
