"""What does one rank of a large job cost on a virtual GPU? A run of its first and its last rank, each in one process.

    python benchmarks/ranks_alone.py [PROGRAM ...]

Prints Markdown: peaks by PyTorch's allocator, and the wall seconds of `dnnmem run`, start and imports included. The
programs are those of the tests (tests/data/scripts).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "tests" / "data" / "scripts"
MIB = 2**20
GPUS = (8, 64)
PROGRAMS = {
    "DDP": ("parallel.py", "ddp"),
    "FSDP2": ("parallel.py", "fsdp"),
    "HSDP": ("parallel.py", "hsdp"),
    "tensor parallel": ("parallel.py", "tp"),
    "tensor parallel below FSDP2": ("parallel.py", "2d"),
    "context parallel": ("parallel.py", "cp"),
    "pipeline, 1F1B, 2 stages": ("pipeline.py", "1f1b", "2"),
}


def run(words: tuple[str, ...], gpus: int, rank: int) -> tuple[dict[str, Any], float]:
    """The rank's part of the JSON of `dnnmem run`, and how long that took in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "run.json")
        options = ["--gpus", str(gpus), "--rank", str(rank), "--no-layers", "--json", str(report)]
        launcher = ["torchrun", "--nnodes", str(max(1, gpus // 8)), "--nproc-per-node", "8"]
        command = [
            sys.executable,
            "-m",
            "dnnmem",
            "run",
            *options,
            "--",
            *launcher,
            str(SCRIPTS / words[0]),
            *words[1:],
        ]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        found: dict[str, Any] = json.loads(report.read_text())["ranks"][0]
    return found, seconds


def main() -> int:
    """Print a line for each program, number of GPUs and rank."""
    print("| program | GPUs | rank | allocated, MiB | reserved, MiB | seconds |", "|---|---|---|---|---|---|", sep="\n")
    for name in sys.argv[1:] or PROGRAMS:
        for gpus in GPUS:
            for rank in (0, gpus - 1):
                found, seconds = run(PROGRAMS[name], gpus, rank)
                sizes = [found["memory"][0][key] / MIB for key in ("allocated_bytes", "reserved_bytes")]
                said = " | ".join(f"{size:.2f}" for size in sizes)
                print(f"| {name} | {gpus} | {rank} | {said} | {seconds:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
