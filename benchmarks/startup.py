"""How long `dnnmem --help` takes, beside an interpreter that does nothing.

    python benchmarks/startup.py

The limit is 0.3 s for the whole command. The ratio to `python -c pass` says how much of it is dnnmem's on this machine.
"""

from __future__ import annotations

import sys

from measure import DNNMEM, median_seconds, report

REPEATS = 11


def main() -> int:
    """Print both times and their ratio; 1 if `--help` is over its limit."""
    bare = median_seconds([sys.executable, "-c", "pass"], REPEATS)
    door = median_seconds([DNNMEM, "--help"], REPEATS)
    print(f"{'python -c pass':<58} {bare:8.3f} s\n{'dnnmem --help / python -c pass':<58} {door / bare:8.1f} x")
    return 0 if report("dnnmem --help", door, 0.3, "s") else 1


if __name__ == "__main__":
    sys.exit(main())
