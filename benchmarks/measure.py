"""How long a command takes and how much memory its largest process needs, one printed line for each number."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

DNNMEM = str(Path(sys.executable).with_name("dnnmem"))
"""The command of the environment that runs the benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one command needed."""

    seconds: float
    """Wall time."""
    rss_bytes: int
    """Largest resident memory of any of its processes."""
    output: str
    """Its standard output."""


def usage(command: list[str]) -> Usage:
    """Run `command` and measure it; stops the benchmark if it fails, with what it said."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, resources = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} exits {process.returncode}:\n{err.read()}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Usage(seconds=seconds, rss_bytes=resources.ru_maxrss * unit, output=out.read())


def median_seconds(command: list[str], repeats: int) -> float:
    """Median wall time of `command`; one run before them warms the disk cache."""
    usage(command)
    return statistics.median(usage(command).seconds for _ in range(repeats))


def report(name: str, value: float, limit: float, unit: str) -> bool:
    """Print a number beside its limit; True if it keeps it."""
    kept = value <= limit
    print(f"{name:<58} {value:8.2f} {unit:<5} limit {limit:g} {unit}{'' if kept else '   OVER'}", flush=True)
    return kept
