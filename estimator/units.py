"""Bytes and seconds between people and numbers: inside dnnmem they are plain ints and floats, units live at the edges.

>>> parse_bytes("24GiB"), parse_bytes("1.5 MB"), format_bytes(25769803776), format_seconds(0.00042)
(25769803776, 1500000, '24.00 GiB', '420 us')
"""

from __future__ import annotations

import re

from dnnmem.estimator.errors import UsageError

_FACTORS = {
    "": 1, "b": 1,
    "k": 2**10, "kb": 10**3, "kib": 2**10,
    "m": 2**20, "mb": 10**6, "mib": 2**20,
    "g": 2**30, "gb": 10**9, "gib": 2**30,
    "t": 2**40, "tb": 10**12, "tib": 2**40,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `24GiB`, `1.5 MB` or `4096`; raises `UsageError` for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _FACTORS:
        raise UsageError(f"{text!r} is not a size", hint="write bytes with a unit: 24GiB, 80GB, 512MiB, 4096")
    return round(float(match[1]) * _FACTORS[match[2].lower()])


def format_bytes(nbytes: int | None) -> str:
    """A size for people, in binary units; `-` for None."""
    if nbytes is None:
        return "-"
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"


def format_seconds(seconds: float | None) -> str:
    """A duration for people; `-` for None."""
    if seconds is None:
        return "-"
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if abs(seconds) * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def format_flops(flops: int | None) -> str:
    """A count of floating-point operations for people; `-` for None."""
    if flops is None:
        return "-"
    count = float(flops)
    for unit in ("", "K", "M", "G", "T"):
        if abs(count) < 1000:
            return f"{count:.0f}" if not unit else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} P"
