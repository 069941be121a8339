"""Run an unmodified torchtitan train.py as one rank of many, and write what its log says of memory, with more digits.

    RANK=0 LOCAL_RANK=0 WORLD_SIZE=8 python harness.py SOURCE WORDS READINGS --job.config_file CONFIG

SOURCE: torchtitan's tree at some commit. WORDS: size of the vocabulary. READINGS: the file to write, one JSON object a
line for each reading of peak memory: `{"reserved_bytes", "allocated_bytes", "retries"}`, and `"out_of_memory"` with the
message where the run ended in that. Runs on a GPU or a virtual one; stand_ins.py says what is replaced.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import stand_ins
import torch


def main() -> None:
    """Replace what is outside, then hand over to train.py."""
    source, words, readings = Path(sys.argv[1]).resolve(), int(sys.argv[2]), Path(sys.argv[3])
    script = stand_ins.train_py(source)
    sys.argv = [str(script), *sys.argv[4:]]
    sys.path.insert(0, str(source))
    stand_ins.replace_packages()
    stand_ins.replace_checkpoint_parts()
    stand_ins.replace_rendezvous()
    stand_ins.replace_data(source, words)
    with readings.open("w", encoding="utf-8") as file:

        def write(entry: dict[str, object]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        stand_ins.watch_memory(lambda: write(_memory()))
        try:
            runpy.run_path(str(script), run_name="__main__")
        except torch.OutOfMemoryError as error:
            write({"out_of_memory": str(error), **_memory()})


def _memory() -> dict[str, object]:
    stats = torch.cuda.memory_stats()
    return {
        "reserved_bytes": stats["reserved_bytes.all.peak"],
        "allocated_bytes": stats["allocated_bytes.all.peak"],
        "retries": stats["num_alloc_retries"],
    }


if __name__ == "__main__":
    main()
