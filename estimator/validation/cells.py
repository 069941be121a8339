"""The cells of a table as numbers, and what to say of those that are none.

>>> whole({"batch": "8.0"}, "batch"), number({"ms": ""}, "ms")
(8, None)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dnnmem.estimator.errors import UsageError


def number(row: Mapping[str, str], column: str) -> float | None:
    """The number in a cell, commas between its digits left out; None for what is empty or no number."""
    try:
        value = float(row.get(column, "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def positive(row: Mapping[str, str], column: str) -> float | None:
    """The same, above 0."""
    value = number(row, column)
    return value if value is not None and value > 0 else None


def whole(row: Mapping[str, str], column: str) -> int:
    """The count in a cell, 1 or more. Raises `UsageError` for anything else."""
    value = number(row, column)
    if value is None or value < 1 or value != int(value):
        raise UsageError(f"column {column!r} has {row.get(column, '')!r}; it must be a whole number, 1 or more")
    return int(value)


def is_true(row: Mapping[str, str], column: str) -> bool:
    """Whether a cell says true."""
    return row.get(column, "").strip().lower() == "true"


def divided(total: int, parts: int, what: str) -> int:
    """`total` over `parts`. Raises `UsageError` where that leaves a rest."""
    if total % parts:
        raise UsageError(f"{what}: {total} is no multiple of {parts}")
    return total // parts
