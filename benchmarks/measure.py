"""How long a command takes and how much memory its largest process needs, one printed line for each number."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DNNMEM = str(Path(sys.executable).with_name("dnnmem"))
"""The command of the environment that runs the benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one command needed."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Of all its processes that it has waited for, in user mode and in the system."""
    rss_bytes: int
    """Largest resident memory of any of its processes."""
    output: str
    """Its standard output."""


def usage(command: list[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run `command` and measure it; stops the benchmark if it fails, with what it said.

    `environment`: all of it; None = this process's own.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
        _, status, resources = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} exits {process.returncode}:\n{err.read()}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Usage(
            seconds=seconds,
            cpu_seconds=resources.ru_utime + resources.ru_stime,
            rss_bytes=resources.ru_maxrss * unit,
            output=out.read(),
        )


def median_seconds(command: list[str], repeats: int) -> float:
    """Median wall time of `command`; one run before them warms the disk cache."""
    usage(command)
    return statistics.median(usage(command).seconds for _ in range(repeats))


def report(name: str, value: float, limit: float, unit: str) -> bool:
    """Print a number beside its limit; True if it keeps it."""
    kept = value <= limit
    print(f"{name:<58} {value:8.2f} {unit:<5} limit {limit:g} {unit}{'' if kept else '   OVER'}", flush=True)
    return kept
