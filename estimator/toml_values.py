"""How a table of facts is read: keys say their unit, values are checked, each fault is one message with its place.

A file of GPUs and a file of nodes differ only in their keys:

>>> keys = {"memory_gib": Key("memory_bytes", size(2**30)), "note": Key("note", text, "")}
>>> read_table({"memory_gib": 2}, keys, "my.toml: [gpu]")
{'memory_bytes': 2147483648, 'note': ''}
>>> read_table({"memory_gib": 0}, keys, "my.toml: [gpu]")
Traceback (most recent call last):
dnnmem.estimator.errors.UsageError: my.toml: [gpu] memory_gib = 0; it must be above 0
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dnnmem.estimator.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = "dnnmem.calibration/1"
"""What a file of `dnnmem calibrate` begins with: its devices and nodes are tables of tables."""
REQUIRED = object()
"""Default of a key that may not be left out."""


class Key(NamedTuple):
    """One key of a table."""

    field: str
    """Field that it fills."""
    read: Callable[[Any], Any]
    """Makes the field's value; raises `ValueError` with the rule that the value breaks."""
    default: Any = REQUIRED
    """Value where the key is left out."""


def read_file(path: str) -> str:
    """The text of a user's file. Raises `UsageError` where it cannot be read."""
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not TOML: it is not a text in UTF-8") from None


def parse_tables(toml: str, where: str, part: str = "") -> dict[str, Any]:
    """Top level of a TOML text, or `part` of a calibration's. Raises `UsageError`, beginning with `where`."""
    try:
        tables = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}") from None
    if not part or tables.get("schema") != SCHEMA:
        return tables
    found = tables.get(part, {})
    if not isinstance(found, dict):
        raise UsageError(f"{where}: {part} is no table", hint=f"put each under its name: [{part}.mine]")
    return found


def read_table(table: Mapping[str, Any], keys: Mapping[str, Key], where: str) -> dict[str, Any]:
    """Values by field. Raises `UsageError`, beginning with `where`, for a missing or unknown key and a wrong value."""
    missing = [key for key, entry in keys.items() if entry.default is REQUIRED and key not in table]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(f"{where} lacks {', '.join(missing[:3])}{more}", hint=f"it needs {', '.join(missing)}")
    unknown = [key for key in table if key not in keys]
    if unknown:
        raise UsageError(f"{where} has {', '.join(unknown)}, which means nothing", hint=f"known: {', '.join(keys)}")
    return {entry.field: _value(table, key, entry, where) for key, entry in keys.items()}


def _value(table: Mapping[str, Any], key: str, entry: Key, where: str) -> Any:  # noqa: ANN401  (as the field is)
    if key not in table:
        return entry.default
    try:
        return entry.read(table[key])
    except ValueError as error:
        raise UsageError(f"{where} {key} = {table[key]!r}; it {error}") from None


def text(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError("must be a text")  # noqa: TRY004  (one kind of error for every rule)
    return value


def texts(value: object) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def number(value: object, *, least: float = 0) -> float:
    """A finite number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise ValueError(f"must be a number of {least:g} or more")
    return value


def scaled(factor: float) -> Callable[[Any], float]:
    """Reads a number of 0 or more in units of `factor`."""
    return lambda value: number(value) * factor


def size(unit: int) -> Callable[[Any], int]:
    """Reads whole bytes, at least 1, in units of `unit`."""

    def read(value: object) -> int:
        nbytes = round(number(value) * unit)
        if not nbytes:
            raise ValueError("must be above 0")
        return nbytes

    return read


def count(value: object, *, least: int = 1) -> int:
    """A whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"must be a whole number of {least} or more")
    return value


def price(value: object) -> tuple[float, float] | None:
    """Low and high of offers; None for `[0, 0]`, which means unknown."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("must be [low, high]")
    low, high = number(value[0]), number(value[1])
    if low > high:
        raise ValueError("must be [low, high] with low not above high")
    return (low, high) if high else None
