"""Where an option's value comes from when the command line does not give it.

    command line  >  DNNMEM_<KEY> in the environment  >  dnnmem.toml, or [tool.dnnmem] in pyproject.toml  >  built in

The file is looked for in the current folder, then in its parents; the nearest one counts, and dnnmem.toml goes before
pyproject.toml.

    [tool.dnnmem]
    gpu = "h100-sxm-80gb"
    batch = 16

>>> settings = resolve({"batch": 4}, folder=Path("/"), environ={"DNNMEM_BATCH": "8", "DNNMEM_GPU": "a100"})
>>> settings["batch"].value, settings["gpu"].value, settings["gpu"].origin
(4, 'a100', 'DNNMEM_GPU')
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnmem.estimator.errors import UsageError

KEYS: Mapping[str, type[int | float | str]] = {
    "batch": int,
    "seq": int,
    "optimizer": str,
    "device": str,
    "gpu": str,
    "steps": int,
    "seed": int,
    "repeats": int,
    "timeout": float,
    "format": str,
    "depth": int,
}
"""What a file or the environment may set, with its type; each is the long name of an option."""

TABLES = ("check",)
"""Tables that it may have besides, each read by its own command."""

_TYPE_WORDS = {int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value and who gave it."""

    value: int | float | str
    """Of the type that `KEYS` lists."""
    origin: str
    """`--batch`, `DNNMEM_BATCH` or a file name with its table."""


Settings = dict[str, Setting]
"""Settings by key; a key that nobody gave is missing."""


def resolve(given: Mapping[str, int | float | str | None], *, folder: Path, environ: Mapping[str, str]) -> Settings:
    """Settings from the command line (`given`, None = not given), the environment and the nearest file, in that order.

    Raises `UsageError` for an unknown key in the file and for a value of the wrong type, naming who gave it.
    """
    settings = _from_file(folder)
    for key, type_ in KEYS.items():
        name = f"DNNMEM_{key.upper()}"
        if text := environ.get(name, "").strip():
            settings[key] = Setting(value=_parse(text, type_, name), origin=name)
    for key, value in given.items():
        if value is not None:
            settings[key] = Setting(value=value, origin=f"--{key}")
    return settings


def own_gpu(folder: Path) -> str | None:
    """The GPU that the environment or the nearest file names, for a command that was given none."""
    import os

    found = resolve({}, folder=folder, environ=os.environ).get("gpu")
    return None if found is None else str(found.value)


def blame(error: UsageError, settings: Settings) -> UsageError:
    """The same error; if it speaks of an option that nobody typed, its hint says where the value came from."""
    lines = [
        f"--{key} comes from {setting.origin}"
        for key, setting in settings.items()
        if f"--{key} " in error.message and setting.origin != f"--{key}"
    ]
    return UsageError(error.message, hint="\n".join(filter(None, [error.hint, *lines])))


def _parse(text: str, type_: type[int | float | str], name: str) -> int | float | str:
    try:
        return type_(text)
    except ValueError:
        raise UsageError(f"{name} is {text!r}; it must be {_TYPE_WORDS[type_]}") from None


def subtable(name: str, folder: Path) -> tuple[Mapping[str, object], str, Path]:
    """A table inside the nearest file's, such as `[tool.dnnmem.check]`, its origin and its folder; empty if none is.

    Raises `UsageError` for a file that cannot be read.
    """
    table, origin, home = _nearest(folder)
    found = table.get(name, {})
    if not isinstance(found, Mapping):
        raise UsageError(f"{name} in {origin} is {found!r}; it must be a table", hint=f"write [tool.dnnmem.{name}]")
    return found, f"{name} in {origin}", home


def known(table: Mapping[str, object], names: Collection[str], where: str, owner: str = "dnnmem") -> None:
    """Raise `UsageError`, with the nearest name, if `table` has a key that is not in `names`."""
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it may have {', '.join(names)}"
            raise UsageError(f"{key!r} in {where} is not a setting of {owner}", hint=hint)


def _from_file(folder: Path) -> Settings:
    table, origin, _ = _nearest(folder)
    return _check({key: value for key, value in table.items() if key not in TABLES}, origin)


def _nearest(folder: Path) -> tuple[Mapping[str, object], str, Path]:
    """The table of the nearest file, where it is from, and its folder; `folder` if there is none."""
    for parent in (folder, *folder.parents):
        own, shared = parent / "dnnmem.toml", parent / "pyproject.toml"
        if own.is_file():
            return _read(own), str(own), parent
        if shared.is_file() and "[tool.dnnmem" in shared.read_text(encoding="utf-8", errors="replace"):
            table = _read(shared).get("tool", {}).get("dnnmem", {})
            return table, f"[tool.dnnmem] in {shared}", parent
    return {}, "", folder


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _check(table: Mapping[str, object], origin: str) -> Settings:
    known(table, KEYS, origin)
    settings = {}
    for key, value in table.items():
        type_ = KEYS[key]
        allowed = (int, float) if type_ is float else type_
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise UsageError(f"{key} in {origin} is {value!r}; it must be {_TYPE_WORDS[type_]}")
        settings[key] = Setting(value=type_(value), origin=origin)
    return settings
