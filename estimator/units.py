"""Bytes and seconds between people and numbers: inside dnnmem they are plain ints and floats, units live at the edges.

>>> parse_bytes("24GiB"), parse_bytes("1.5 MB"), format_bytes(25769803776), format_seconds(0.00042)
(25769803776, 1500000, '24.00 GiB', '420 us')
"""

from __future__ import annotations

import re
from fractions import Fraction

from dnnmem.estimator.errors import UsageError

_FACTORS = {
    "": 1, "b": 1,
    "k": 2**10, "kb": 10**3, "kib": 2**10,
    "m": 2**20, "mb": 10**6, "mib": 2**20,
    "g": 2**30, "gb": 10**9, "gib": 2**30,
    "t": 2**40, "tb": 10**12, "tib": 2**40,
}  # fmt: skip

_THREE_DIGITS = 999.5
"""From here on three digits cannot show a number without an exponent."""


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `24GiB`, `1.5 MB` or `4096`; raises `UsageError` for anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _FACTORS:
        raise UsageError(f"{text!r} is not a size", hint="write bytes with a unit: 24GiB, 80GB, 512MiB, 4096")
    return round(Fraction(match[1]) * _FACTORS[match[2].lower()])


def parse_share(option: str, text: object) -> float:
    """A share such as `5%` or `0.05`; raises `UsageError`, naming `option`, for what is none.

    A bare 2 may mean 2 % or twice as much, so it is none.

    >>> parse_share("--headroom", "2.5 %"), parse_share("--headroom", "0")
    (0.025, 0.0)
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)\s*", str(text))
    if match is None:
        raise UsageError(f"{option} is {text!r}; it is a share such as 5% or 0.05", hint=f"{option} 5%")
    number = float(match[1])
    if not match[2] and number >= 1:
        raise UsageError(f"{option} is {text!r}, which is {number:.0%}", hint=f"write {option} {match[1]}%")
    return number / 100 if match[2] else number


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
        if abs(seconds) * factor < _THREE_DIGITS:
            return f"{seconds * factor:.3g} {unit}"
    return f"{format_number(seconds)} s"


def format_flops(flops: int | None) -> str:
    """A count of floating-point operations for people; `-` for None."""
    if flops is None:
        return "-"
    count = float(flops)
    for unit in ("", "K", "M", "G", "T"):
        if abs(count) < _THREE_DIGITS:
            return f"{count:.0f}" if not unit else f"{count:.3g} {unit}"
        count /= 1000
    return f"{format_number(count)} P"


def format_number(number: float) -> str:
    """Three digits, and no exponent where there are more."""
    return f"{number:.3g}" if abs(number) < _THREE_DIGITS else f"{number:,.0f}"
