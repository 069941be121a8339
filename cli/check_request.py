"""What a check is asked for: targets and limits from the command line, the environment and `[tool.dnnmem.check]`.

    [tool.dnnmem.check]
    baseline = ".dnnmem/baseline.json"
    max-increase = "2%"
    targets = ["model.py", { target = "hf:gpt2", batch = 8, seq = 1024, gpu = "a10g", budget = "22GiB" }]

Targets on the command line go in the place of the file's; a target's own settings go before those of the table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dnnmem.cli.commands.job import prepare
from dnnmem.cli.config import subtable
from dnnmem.estimator.baseline import Limits
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.units import parse_bytes
from dnnmem.profilers.request import Request

BASELINE = Path(".dnnmem/baseline.json")
"""Where a baseline is kept unless it is said."""
_LIMITS = ("max-increase", "budget", "max-slowdown")
_STEP = ("batch", "seq", "optimizer", "device", "gpu", "seed", "steps")
_TABLE = ("baseline", "targets", *_LIMITS)
_TARGET = ("target", "args", "input", *_STEP, *_LIMITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """A checked command line of `dnnmem check`."""

    steps: tuple[tuple[Request, Limits], ...]
    """What to measure, and what is allowed."""
    baseline: Path
    """The file."""


def prepare_check(
    targets: Sequence[str],
    typed: Mapping[str, int | float | str | None],
    limits: Mapping[str, str | None],
    environ: Mapping[str, str],
    *,
    folder: Path,
    inputs: Sequence[str] = (),
    args: Sequence[str] = (),
    baseline: Path | None = None,
) -> CheckRequest:
    """A request from what was typed, the environment and the file. Raises `UsageError`.

    Args: `typed` as for `prepare`, `limits` by their names in the file; None = not typed.
    """
    table, origin = subtable("check", folder)
    _known(table, _TABLE, origin)
    named: Sequence[object] = list(targets) or _list(table.get("targets", []), f"targets in {origin}")
    if not named:
        raise UsageError(
            "no TARGET is given, and none stands in [tool.dnnmem.check]",
            hint='dnnmem check model.py --batch 8, or targets = ["model.py"] in pyproject.toml',
        )
    common = {name: table.get(name) for name in _LIMITS} | {name: text for name, text in limits.items() if text}
    steps = []
    for entry in named:
        own = {"target": entry} if isinstance(entry, str) else entry
        if not isinstance(own, Mapping) or not isinstance(own.get("target"), str):
            raise UsageError(
                f"{origin}: {entry!r} is no target", hint='write "model.py" or { target = "model.py", ... }'
            )
        _known(own, _TARGET, f"{own['target']} in {origin}")
        request = _request(own, typed, environ, folder=folder, inputs=inputs, args=args)
        told = {name: limits.get(name) or own.get(name, common.get(name)) for name in _LIMITS}
        steps.append((request, read_limits(told)))
    where = baseline or _path(table.get("baseline"), origin)
    return CheckRequest(steps=tuple(steps), baseline=where)


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
    """A share such as `2%` or `0.02`. Raises `UsageError` for what is none.

    >>> read_share("--max-increase", "2.5 %"), read_share("--max-increase", "0")
    (0.025, 0.0)
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)\s*", str(text))
    if match is None:
        raise UsageError(f"{option} is {text!r}; it is a share such as 2% or 0.02", hint=f"{option} 2%")
    return float(match[1]) / (100 if match[2] else 1)


def _request(
    own: Mapping[str, object],
    typed: Mapping[str, int | float | str | None],
    environ: Mapping[str, str],
    *,
    folder: Path,
    inputs: Sequence[str],
    args: Sequence[str],
) -> Request:
    given: dict[str, int | float | str | None] = {**typed}
    for name in _STEP:
        value = own.get(name)
        if value is not None and given.get(name) is None:
            given[name] = _plain(name, value)
    more = own.get("args", {})
    if not isinstance(more, Mapping):
        raise UsageError(f"args of {own['target']} is {more!r}; it is a table", hint="args = { width = 64 }")
    words = [f"{name}={value}" for name, value in more.items()] + list(args)
    named = [str(text) for text in _list(own.get("input", []), f"input of {own['target']}")] + list(inputs)
    job = prepare(str(own["target"]), given, environ, folder=folder, inputs=named, args=words)
    if job.request is None:
        raise UsageError(
            f"{own['target']} is a recorded step, which no commit changes",
            hint="name the model; dnnmem diff compares files",
        )
    device = "fake" if job.request.device == "auto" else job.request.device
    return replace(job.request, device=device)


def _plain(name: str, value: object) -> int | float | str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UsageError(f"{name} is {value!r}; it is a number or a text")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise UsageError(f"{where} is {value!r}; it is a list")
    return value


def _path(value: object, origin: str) -> Path:
    if value is not None and not isinstance(value, str):
        raise UsageError(f"baseline in {origin} is {value!r}; it is the name of a file")
    return Path(value) if value else BASELINE


def _known(table: Mapping[str, object], names: Sequence[str], where: str) -> None:
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it may have {', '.join(names)}"
            raise UsageError(f"{key!r} in {where} is not a setting of a check", hint=hint)
