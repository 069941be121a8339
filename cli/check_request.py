"""What a check is asked for: targets and limits from the command line, the environment and `[tool.dnnmem.check]`.

    [tool.dnnmem.check]
    baseline = ".dnnmem/baseline.json"
    max-increase = "2%"
    targets = ["model.py", { target = "hf:gpt2", batch = 8, seq = 1024, gpu = "a10g", budget = "22GiB" }]

Targets on the command line go in the place of the file's; a target's own settings go before those of the table. Files
that the table names lie beside it, wherever the check is started, and steps are called by their place there: a
baseline means the same on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dnnmem.cli.check_limits import LIMITS, read_limits
from dnnmem.cli.commands.job import prepare
from dnnmem.cli.config import known, subtable
from dnnmem.estimator.baseline import Limits
from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.request import Request

BASELINE = Path(".dnnmem/baseline.json")
"""Where a baseline is kept unless it is said."""
_STEP = ("batch", "seq", "optimizer", "device", "gpu", "seed", "steps")
_TABLE = ("baseline", "targets", *LIMITS)
_TARGET = ("target", "args", "input", *_STEP, *LIMITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step to measure, and what it may need."""

    name: str
    """The target; a file by its place beside the settings."""
    request: Request
    """How to run it."""
    gpu: Device | None
    """What `--gpu` names."""
    limits: Limits
    """What is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """A checked command line of `dnnmem check`."""

    steps: tuple[Step, ...]
    """What to measure."""
    baseline: Path
    """The file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is the same for all targets."""

    typed: Mapping[str, int | float | str | None]
    environ: Mapping[str, str]
    folder: Path
    home: Path
    inputs: Sequence[str]
    args: Sequence[str]


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
    table, origin, home = subtable("check", folder)
    known(table, _TABLE, origin, "a check")
    asked = _Asked(typed=typed, environ=environ, folder=folder, home=home, inputs=inputs, args=args)
    given = {name: limits.get(name) or _variable(environ, name) for name in LIMITS}
    steps = []
    for entry in _entries(targets, table, origin, asked):
        known(entry, _TARGET, f"{entry['target']} in {origin}", "a check")
        told = {name: given[name] or entry.get(name, table.get(name)) for name in LIMITS}
        steps.append(_step(entry, read_limits(told), asked))
    _refuse_twins(steps)
    named = baseline or _variable(environ, "baseline")
    return CheckRequest(
        steps=tuple(steps), baseline=Path(named) if named else _beside(home, folder, _path(table, origin))
    )


def _entries(
    targets: Sequence[str], table: Mapping[str, object], origin: str, asked: _Asked
) -> list[Mapping[str, object]]:
    if targets:
        return [{"target": target} for target in targets]
    named = _list(table.get("targets", []), f"targets in {origin}")
    if not named:
        raise UsageError(
            "no TARGET is given, and none stands in [tool.dnnmem.check]",
            hint='dnnmem check model.py --batch 8, or targets = ["model.py"] in pyproject.toml',
        )
    found: list[Mapping[str, object]] = []
    for entry in named:
        own = {"target": entry} if isinstance(entry, str) else entry
        if not isinstance(own, Mapping) or not isinstance(own.get("target"), str):
            raise UsageError(
                f"{origin}: {entry!r} is no target", hint='write "model.py" or { target = "model.py", ... }'
            )
        file, symbol = _file(own["target"])
        moved: dict[str, object] = {**own}
        if file:
            moved["target"] = f"{_beside(asked.home, asked.folder, Path(file))}{symbol}"
        if isinstance(gpu := own.get("gpu"), str) and ".toml" in gpu:
            moved["gpu"] = str(_beside(asked.home, asked.folder, Path(gpu)))
        found.append(moved)
    return found


def _step(own: Mapping[str, object], limits: Limits, asked: _Asked) -> Step:
    target = str(own["target"])
    given: dict[str, int | float | str | None] = {**asked.typed}
    for name in _STEP:
        value = own.get(name)
        if value is not None and given.get(name) is None:
            given[name] = _plain(name, value)
    more = own.get("args", {})
    if not isinstance(more, Mapping):
        raise UsageError(f"args of {target} is {more!r}; it is a table", hint="args = { width = 64 }")
    words = [f"{name}={value}" for name, value in more.items()] + list(asked.args)
    named = [str(text) for text in _list(own.get("input", []), f"input of {target}")] + list(asked.inputs)
    environ = {name: text for name, text in asked.environ.items() if name != "DNNMEM_FORMAT"}
    job = prepare(target, given, environ, folder=asked.folder, inputs=named, args=words)
    if job.request is None:
        raise UsageError(
            f"{target} is a recorded step, which no commit changes",
            hint="name the model; dnnmem diff compares files",
        )
    device = "fake" if job.request.device == "auto" else job.request.device
    if limits.max_slowdown is not None and device not in {"cpu", "cuda"}:
        raise UsageError(
            f"--max-slowdown needs a clock, and {device} has none", hint="--device cpu or cuda, or leave it out"
        )
    return Step(name=_name(target, asked), request=replace(job.request, device=device), gpu=job.device, limits=limits)


def _refuse_twins(steps: Sequence[Step]) -> None:
    """Two steps that would be kept under one key cannot both be held against it."""
    seen: set[object] = set()
    for step in steps:
        asked = replace(step.request, target=step.name, seed=0, steps=None, repeats=1)
        if asked.to_json() in seen:
            raise UsageError(f"{step.name} stands there twice with the same sizes and device", hint="leave one out")
        seen.add(asked.to_json())


def _file(target: str) -> tuple[str, str]:
    """The file of `models/net.py:Net` and what follows it; nothing for targets of other kinds."""
    file, dot, symbol = target.partition(".py")
    return (file + dot, symbol) if dot and (not symbol or symbol.startswith(":")) else ("", "")


def _name(target: str, asked: _Asked) -> str:
    file, symbol = _file(target)
    return Path(os.path.relpath(asked.folder / file, asked.home)).as_posix() + symbol if file else target


def _beside(home: Path, folder: Path, path: Path) -> Path:
    """`path`, which is named in `home`, as it is called from `folder`."""
    return path if home == folder or path.is_absolute() else Path(os.path.relpath(home / path, folder))


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(f"DNNMEM_{name.upper().replace('-', '_')}", "").strip()


def _plain(name: str, value: object) -> int | float | str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UsageError(f"{name} is {value!r}; it is a number or a text")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise UsageError(f"{where} is {value!r}; it is a list")
    return value


def _path(table: Mapping[str, object], origin: str) -> Path:
    value = table.get("baseline")
    if value is not None and not isinstance(value, str):
        raise UsageError(f"baseline in {origin} is {value!r}; it is the name of a file")
    return Path(value) if value else BASELINE
