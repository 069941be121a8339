"""Data parallelism of two models of real size: what passes say, and what first, middle and last ranks need.

    python benchmarks/sharding_rows.py [--model NAME ...] [--only TEXT] [--save]

GPT-2 XL (1.6 billion parameters, 1,024 tokens, bf16 autocast) and a Llama-3-8B shape (2,048 tokens, FSDP2's mixed
precision, full recomputation), on virtual H100. --save writes the table into docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "accuracy.md"
START, END = "<!-- sharding rows -->", "<!-- end of sharding rows -->"
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
    "Llama-3-8B": (
        Request(target=SAMPLE, batch_size=1, seq_len=2048, args=LLAMA_8B),
        ("precision.param=float32", "precision.reduce=float32", "remat.policy=full"),
    ),
}
WAYS = {
    "DDP": "mesh.dp_replicate={} sharding.strategy=ddp",
    "DDP, views of buckets": "mesh.dp_replicate={} sharding.strategy=ddp sharding.bucket_views=true",
    "ZeRO-1": "mesh.dp_shard={} sharding.strategy=zero1",
    "ZeRO-2": "mesh.dp_shard={} sharding.strategy=zero2",
    "FSDP2": "mesh.dp_shard={} sharding.strategy=zero3",
    "FSDP2, two ahead": "mesh.dp_shard={} sharding.strategy=zero3 sharding.prefetch=2",
}
GPUS = (2, 8, 64)
_HEAD = (
    "| model | strategy | GPUs | predicted, GiB | first rank | middle | last | of what is reserved |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
)


def main() -> None:
    """Print a row as soon as it is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="*", default=list(MODELS))
    parser.add_argument("--only", nargs="*", default=list(WAYS))
    parser.add_argument("--gpus", nargs="*", type=int, default=GPUS)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    lines = list(_HEAD)
    for model in given.model:
        for line in _rows(model, given.only, given.gpus):
            print(line, flush=True)
            lines.append(line)
    if given.save:
        text, table = DOCS.read_text("utf-8"), "\n".join(lines)
        before, after = text.partition(START)[0], text.partition(END)[2]
        DOCS.write_text(f"{before}{START}\n{table}\n{END}{after}", "utf-8")


def _rows(model: str, ways: list[str], gpus: tuple[int, ...]) -> Iterator[str]:
    request, more = MODELS[model]
    cache = cache_folder(os.environ)
    plain = run(replace(request, device="fake", gpu=GPU.name), cache=cache)[0]
    for way in ways:
        for count in gpus:
            plan = change(Plan(), (*WAYS[way].format(count).split(), *more))
            [found] = rewrite(plain, plan)
            held = replay_on(found, GPU)
            cells, reserved = [], []
            for rank in sorted({0, count // 2, count - 1}):
                ran = verify(request, plan, GPU, cache=cache, gradients=False, rank=rank)
                if ran.peak_allocated_bytes is None or ran.peak_reserved_bytes is None:
                    cells.append("out of memory" if ran.outcome == "out_of_memory" else ran.outcome)
                    continue
                cells.append(f"{held.peak_allocated_bytes / ran.peak_allocated_bytes - 1:+.2%}")
                reserved.append(held.peak_reserved_bytes / ran.peak_reserved_bytes - 1)
            cells = [*cells[:-1], *["="] * (3 - len(cells)), cells[-1]]
            worst = f"{max(reserved, key=abs):+.2%}" if reserved else ""
            size = held.peak_allocated_bytes / 2**30
            yield f"| {model} | {way} | {count} | {size:.2f} | {' | '.join(cells)} | {worst} |"


if __name__ == "__main__":
    main()
