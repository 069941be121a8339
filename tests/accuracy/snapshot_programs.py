"""Small programs whose memory snapshots are read, viewed and replayed: one for each thing that a history may hold.

python tests/accuracy/snapshot_programs.py NAME FILE      on a (virtual) GPU; writes FILE and FILE.json, its peaks
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dnnmem.estimator.devices import find_device
from dnnmem.profilers.virtual_gpu.launch import prepare

MIB = 2**20


def churn(seed: int, count: int, device: str = "cuda", most: int = 24 * MIB, kept: int = 12) -> list[torch.Tensor]:
    """Allocate and free at random; returns what is left."""
    chosen = random.Random(seed)  # noqa: S311
    held: list[torch.Tensor] = []
    for _ in range(count):
        if held and chosen.random() < len(held) / (2 * kept):
            held.pop(chosen.randrange(len(held)))
        else:
            nbytes = chosen.choice((chosen.randint(1, 4096), chosen.randint(1, MIB), chosen.randint(MIB, most)))
            held.append(torch.empty(nbytes, dtype=torch.uint8, device=device))
    return held


def plain() -> object:
    """Allocations, frees, an emptied cache."""
    held = churn(1, 120)
    del held[::2]
    torch.cuda.empty_cache()
    return [held, churn(2, 80)]


def pools() -> object:
    """A `torch.cuda.MemPool` beside the common one, used twice."""
    pool = torch.cuda.MemPool()
    held = [churn(3, 40)]
    for seed in (4, 5):
        with torch.cuda.use_mem_pool(pool):
            held.append(churn(seed, 30))
        held.append(churn(seed + 10, 30))
        held.pop(0)
    return [pool, held]


def graphs() -> object:
    """Two graphs that share a pool, and one of its own."""
    held: list[object] = [churn(6, 30)]
    shared = torch.cuda.graph_pool_handle()
    for pool in (shared, shared, None):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="relaxed"):
            held += [graph, churn(7, 25)]
        held.append(churn(8, 25))
    return held


def two_gpus() -> object:
    """Both GPUs are used."""
    return [churn(9, 60), churn(10, 90, "cuda:1")]


def streams() -> object:
    """Blocks that other streams use when they are freed."""
    others = [torch.cuda.Stream() for _ in range(3)]
    chosen = random.Random(11)  # noqa: S311
    held: list[torch.Tensor] = []
    for _ in range(150):
        with torch.cuda.stream(chosen.choice([torch.cuda.default_stream(), *others])):
            held += churn(chosen.randint(0, 99), 2, most=4 * MIB)
        chosen.choice(held).record_stream(chosen.choice(others))
        if len(held) > 15:
            held.pop(chosen.randrange(len(held)))
    return held


def full() -> object:
    """The GPU runs out of memory, twice; other requests are served after the cache is emptied."""
    held: list[object] = []
    for seed in range(12, 30):
        try:
            held.append(churn(seed, 30, most=90 * MIB, kept=8))
        except torch.OutOfMemoryError:  # noqa: PERF203
            del held[: len(held) // 2 + 1]
    return held


def fraction() -> object:
    """Under a memory fraction, which garbage collection needs."""
    torch.cuda.set_per_process_memory_fraction(0.6)
    return full()


PROGRAMS = {
    "plain": plain,
    "pools": pools,
    "graphs": graphs,
    "two_gpus": two_gpus,
    "streams": streams,
    "full": full,
    "fraction": fraction,
}


def record(name: str, path: Path, *, conf: str = "", entries: int = 10**6) -> Path:
    """Write the snapshot of a program, and beside it the peaks that PyTorch counted, on virtual GPUs of 1 GiB."""
    device = replace(find_device("a100-sxm-40gb"), memory_bytes=2**30, usable_bytes=2**30)
    told = {"PYTORCH_ALLOC_CONF": conf, "PYTORCH_CUDA_ALLOC_CONF": conf} if conf else {}
    base = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **told}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, name, str(path), str(entries)],
        env=prepare(device, base, count=2 if name == "two_gpus" else 1).environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return path


def main(name: str, path: str, entries: int) -> None:
    torch.empty(1, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.memory._record_memory_history(max_entries=entries, stacks="python")
    held = PROGRAMS[name]()
    torch.cuda.memory._dump_snapshot(path)
    stats = [torch.cuda.memory_stats(device) for device in range(torch.cuda.device_count())]
    names = ("allocated_bytes", "reserved_bytes", "requested_bytes", "active_bytes")
    peaks = [{name: found.get(f"{name}.all.peak", 0) for name in names} for found in stats]
    Path(path).with_suffix(".json").write_text(json.dumps(peaks))
    del held


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 10**6)
