"""Gradient communication of a GPT-2 over 8 GPUs: bytes on the wire, what waits, memory, and step time on two networks.

    python benchmarks/gradient_rows.py [--save]          --save writes the table into docs/gradients.md

GPT-2 small, 16 sequences of 1,024 tokens a GPU, in bf16 by autocast, AdamW; recorded without a GPU. `node` is one of
8 H100 under NVLink, `machines` are 8 with one H100 each and 25 Gbit/s of network.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.cluster import Link, find_cluster
from dnnmem.estimator.estimate import price
from dnnmem.estimator.local_step import LocalStep, local_step
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Kind, Lane, Trace
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "gradients.md"
START, END = "<!-- gradient rows -->", "<!-- end of gradient rows -->"
GPUS, GPU = 8, "h100-sxm-80gb"
DDP = (f"mesh.dp_replicate={GPUS}", "sharding.strategy=ddp")
WAYS: dict[str, tuple[str, ...]] = {
    "whole, float32": (),
    "bfloat16": ("compression=bfloat16",),
    "qsgd, 8 bits": ("compression=qsgd",),
    "qsgd, 4 bits": ("compression=qsgd", "bits=4"),
    "terngrad": ("compression=terngrad",),
    "signsgd": ("compression=signsgd",),
    "onebit": ("compression=onebit",),
    "topk, 1 %": ("compression=topk",),
    "dgc, 0.1 %": ("compression=dgc", "density=0.001"),
    "powersgd, rank 1": ("compression=powersgd",),
    "powersgd, rank 32": ("compression=powersgd", "rank=32"),
    "local, 8 steps": ("local_steps=8",),
}
_SENT = {"all_reduce": 2, "all_gather": 1, "all_to_all": 1}
"""Times that a message's bytes, but for one GPU's part, leave a GPU."""
_WAITING = ("waiting", "waiting part", "velocity", "p", "q")
_HEAD = "| sent | MiB a GPU | waiting, MiB | reserved, GiB | node, ms | machines, ms |\n|---|---:|---:|---:|---:|---:|"


def main() -> None:
    """Print the table, or save it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", action="store_true")
    save = parser.parse_args().save
    request = Request(
        target=str(ROOT / "sample_models" / "gpt.py"), batch_size=16, seq_len=1024, device="fake", gpu=GPU
    )
    trace = run(request, cache=cache_folder(os.environ))[0]
    table = "\n".join((_HEAD, *_rows(trace)))
    print(table)
    if save:
        text = DOCS.read_text("utf-8")
        before, after = text.partition(START)[0], text.partition(END)[2]
        DOCS.write_text(f"{before}{START}\n{table}\n{END}{after}", "utf-8")


def _rows(trace: Trace) -> Iterator[str]:
    node = find_cluster(f"{GPU}:{GPUS}")
    network = Link(name="ethernet", bytes_per_s=25e9 / 8, latency_seconds=20e-6, source="25 Gbit/s")
    machines = replace(node, gpus_per_node=1, across=network, nics_per_node=1)
    for name, ways in WAYS.items():
        more = ("optimizer.name=sgd",) if name.startswith("dgc") else ()
        settings = (*DDP, "precision.compute=bf16_amp", *more, *(f"gradients.{way}" for way in ways))
        plan = change(Plan(), settings)
        steps = [local_step(trace, plan, cluster) for cluster in (node, machines)]
        found = [
            price(step, load(cluster.device), memory=cluster is node)
            for step, cluster in zip(steps, (node, machines), strict=True)
        ]
        mib = [value / 2**20 for value in (_sent(steps[0]), _waiting(steps[0]))]
        reserved = (found[0].peak_reserved_bytes or 0) / 2**30
        times = [1e3 * one.step_seconds for one in found]
        yield f"| {name} | {mib[0]:,.1f} | {mib[1]:,.1f} | {reserved:.2f} | {times[0]:.0f} | {times[1]:.0f} |"


def _sent(step: LocalStep) -> float:
    """Bytes that leave a GPU in a step, for gradients."""
    share = (GPUS - 1) / GPUS
    ops = [op for op in step.local.ops if op.lane is Lane.COMM]
    return sum(_SENT.get(op.name.split(".")[1], 0) * share * op.moved_bytes for op in ops)


def _waiting(step: LocalStep) -> int:
    storages = [step.local.storages[i] for i in step.local.pinned]
    return sum(s.nbytes for s in storages if s.kind is Kind.COMM and s.name in _WAITING)


if __name__ == "__main__":
    main()
