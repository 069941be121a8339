"""What a step may need, as people write it: a share by which its peak may grow, a size that it must fit.

>>> read_limits({"max-increase": "5%", "budget": "22GiB"}).max_increase
0.05
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from dnnmem.estimator.baseline import Limits
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.units import parse_bytes

LIMITS = ("max-increase", "budget", "max-slowdown")
"""Their names in a file; with dashes before, those of options."""


def read_limits(told: Mapping[str, object]) -> Limits:
    """Limits by their names in the file: `max-increase` and `max-slowdown` shares, `budget` a size.

    >>> read_limits({"max-increase": "5%", "budget": "22GiB"}).budget_bytes == 22 << 30
    True
    """
    found = Limits()
    if (text := told.get("max-increase")) is not None:
        found = replace(found, max_increase=read_share("--max-increase", text))
    if (text := told.get("max-slowdown")) is not None:
        found = replace(found, max_slowdown=read_share("--max-slowdown", text))
    if (text := told.get("budget")) is not None:
        found = replace(found, budget_bytes=parse_bytes(str(text)))
    return found


def read_share(option: str, text: object) -> float:
    """A share such as `2%` or `0.02`. Raises `UsageError` for what is none, and for a bare 2, which may be either.

    >>> read_share("--max-increase", "2.5 %"), read_share("--max-increase", "0")
    (0.025, 0.0)
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)\s*", str(text))
    if match is None:
        raise UsageError(f"{option} is {text!r}; it is a share such as 2% or 0.02", hint=f"{option} 2%")
    number = float(match[1])
    if not match[2] and number >= 1:
        raise UsageError(f"{option} is {text!r}, which is {number:.0%}", hint=f"write {option} {match[1]}%")
    return number / 100 if match[2] else number
