"""The simulated allocator against PyTorch's own: random programs, under every setting that changes it.

    python -m tests.accuracy.allocator_programs [COUNT]       1,000 programs by default: some minutes

Each one runs on both (allocator_twins.py) on a virtual GPU of 1 GiB, so that many run out of memory. Prints a line a
setting; the exit code is 1 if anything differs. Settings that the installed torch does not have are left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dnnmem.estimator.allocator_versions import SETTINGS_SINCE, release_of
from dnnmem.estimator.devices import find_device
from dnnmem.profilers.virtual_gpu.launch import prepare

TWINS = Path(__file__).with_name("allocator_twins.py")
SETTINGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:32",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "per_process_memory_fraction:0.6,garbage_collection_threshold:0.4",
    "max_split_size_mb:64,max_non_split_rounding_mb:40",
    "large_segment_size_mb:48",
)

FRACTION = "per_process_memory_fraction"


def items(setting: str) -> list[str]:
    """The settings of a text, each `key:value`.

    >>> items("roundup_power2_divisions:[256:1,>:8],max_split_size_mb:32")
    ['roundup_power2_divisions:[256:1,>:8]', 'max_split_size_mb:32']
    """
    return re.split(r",(?![^\[]*\])", setting)


def known(setting: str) -> bool:
    """Whether the installed torch has all keys of `setting`; a memory fraction can be set in any."""
    keys = {item.partition(":")[0] for item in items(setting)} - {FRACTION}
    release = release_of(version("torch"))
    return release is None or all(SETTINGS_SINCE.get(key, release) <= release for key in keys)


def run(setting: str, count: int, seed: int, cache: Path | None = None) -> dict[str, Any]:
    """What `allocator_twins.py` says of `count` programs under `setting`, in a process on a virtual GPU of 1 GiB."""
    device = replace(find_device("a100-sxm-40gb"), memory_bytes=2**30, usable_bytes=2**30)
    keys = ",".join(item for item in items(setting) if not item.startswith(FRACTION))  # the program sets that itself
    told = {"PYTORCH_ALLOC_CONF": keys, "PYTORCH_CUDA_ALLOC_CONF": keys} if keys else {}
    base = {**os.environ, "PYTHONPATH": str(TWINS.parents[2]), **told}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(TWINS), setting, str(count), str(seed)],
        env=prepare(device, base, cache=cache, in_flight=0).environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(count: int) -> int:
    """Print a line a setting."""
    worst = 0
    settings = [setting for setting in SETTINGS if known(setting)]
    print(f"torch {version('torch')}, {len(settings)} of {len(SETTINGS)} settings")
    for number, setting in enumerate(settings):
        found = run(setting, -(-count // len(settings)), number)
        told = ", ".join(
            f"{found.get(name, 0)} {name}" for name in ("programs", "alloc", "retries", "refused", "capture")
        )
        print(f"{setting or 'default'}: {told}; difference: {found['difference']}", flush=True)
        worst |= found["difference"] is not None
    return worst


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
