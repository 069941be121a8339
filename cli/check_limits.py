"""What a step may need, as people write it: a share by which its peak may grow, a size that it must fit.

>>> read_limits({"max-increase": "5%", "budget": "22GiB"}).max_increase
0.05
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dnnmem.estimator.baseline import Limits
from dnnmem.estimator.units import parse_bytes, parse_share

LIMITS = ("max-increase", "budget", "max-slowdown")
"""Their names in a file; with dashes before, those of options."""


def read_limits(told: Mapping[str, object]) -> Limits:
    """Limits by their names in the file: `max-increase` and `max-slowdown` shares, `budget` a size.

    >>> read_limits({"max-increase": "5%", "budget": "22GiB"}).budget_bytes == 22 << 30
    True
    """
    found = Limits()
    if (text := told.get("max-increase")) is not None:
        found = replace(found, max_increase=parse_share("--max-increase", text))
    if (text := told.get("max-slowdown")) is not None:
        found = replace(found, max_slowdown=parse_share("--max-slowdown", text))
    if (text := told.get("budget")) is not None:
        found = replace(found, budget_bytes=parse_bytes(str(text)))
    return found
