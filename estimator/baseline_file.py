r"""Baselines as text that people merge: JSON, sorted, a line for each number, equal blocks on one line.

    "blocks.0-11.mlp.0 activation": 100663296        twelve modules that hold so much each

Files are read with care: what is no baseline, was torn by a merge or holds what no step can is refused with its place.

>>> key = Key(target="m.py", device="fake", gpu=None, torch="2.14")
>>> modules = {(f"h.{i}.fc", "activation"): 8 for i in range(3)} | {("a.0-1", "param"): 4}
>>> text = to_text([Entry(key=key, allocated_bytes=28, modules=modules)])
>>> [line.strip() for line in text.splitlines() if "activation" in line or "param" in line]
['"a.0\\\\-1 param": 4,', '"h.0-2.fc activation": 8']
>>> from_text(text, "baseline.json")[key.text].modules == modules
True
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from dnnmem.estimator.baseline import Entry, Key
from dnnmem.estimator.errors import UsageError

SCHEMA = "dnnmem.baseline/1"
MOST_BYTES = 64 << 20
"""Of a file: a baseline has some KiB a step."""
_RANGE = re.compile(r"(\d+)-(\d+)")
_LONGEST = 100_000
"""Modules that a range may stand for."""
_HINT = "remove the file, then write it anew: dnnmem check --update-baseline"


def to_text(entries: Iterable[Entry]) -> str:
    """The file of these entries, sorted by key; equal entries give equal bytes."""
    steps = {entry.key.text: _written(entry) for entry in entries}
    return json.dumps({"schema": SCHEMA, "steps": steps}, indent=1, sort_keys=True) + "\n"


def from_text(text: str, where: str) -> dict[str, Entry]:
    """Entries by their key's text. Raises `UsageError`, beginning with `where`, for what is no baseline."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(("<<<<<<<", "=======", ">>>>>>>")):
            raise UsageError(f"{where}:{number} has a merge's conflict markers", hint=f"resolve the merge, or {_HINT}")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", hint=_HINT) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("steps"), dict):
        _refuse(where, f"is no baseline: an object with schema {SCHEMA} and steps is needed")
    found = {name: _read(step, f"{where}: {name!r}") for name, step in data["steps"].items()}
    for name, entry in found.items():
        if entry.key.text != name:
            _refuse(f"{where}: {name!r}", f"holds the step {entry.key.text!r}")
    return found


def _written(entry: Entry) -> dict[str, Any]:
    key = entry.key
    return {
        "target": key.target,
        "batch": dict(key.batch),
        "device": key.device,
        "gpu": key.gpu,
        "torch": key.torch,
        "allocator": key.allocator,
        "allocated_bytes": entry.allocated_bytes,
        "reserved_bytes": entry.reserved_bytes,
        "total_bytes": entry.total_bytes,
        "step_seconds": entry.step_seconds,
        "parts": dict(entry.parts),
        "modules": dict(_folded(entry.modules)),
    }


def _read(step: object, where: str) -> Entry:
    if not isinstance(step, dict):
        _refuse(where, "is no step")
    texts = [_text(step, name, where) for name in ("target", "device", "torch")]
    gpu, batch = step.get("gpu"), _table(step, "batch", where)
    if gpu is not None and not isinstance(gpu, str):
        _refuse(where, f"has gpu {gpu!r}; it is a text or null")
    if any(type(value) not in (int, str) for value in batch.values()):
        _refuse(where, "has a batch whose values are neither whole numbers nor texts")
    seconds = step.get("step_seconds")
    if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < float("inf")):
        _refuse(where, f"has step_seconds {seconds!r}; it is a time or null")
    modules: dict[tuple[str, str], int] = {}
    for name, nbytes in _table(step, "modules", where).items():
        path, blank, kind = name.rpartition(" ")
        if not blank or not kind:
            _refuse(where, f"has a module {name!r}; it is written `path kind`")
        modules |= {(one, kind): _bytes(nbytes, f"{where}: {name!r}") for one in _unfolded(path, where)}
    return Entry(
        key=Key(
            target=texts[0], batch=batch, device=texts[1], gpu=gpu, torch=texts[2], allocator=_allocator(step, where)
        ),
        allocated_bytes=_bytes(step.get("allocated_bytes"), f"{where}: allocated_bytes"),
        reserved_bytes=_maybe(step, "reserved_bytes", where),
        total_bytes=_maybe(step, "total_bytes", where),
        parts={name: _bytes(n, f"{where}: {name!r}") for name, n in _table(step, "parts", where).items()},
        modules=modules,
        step_seconds=seconds,
    )


def _allocator(step: Mapping[str, Any], where: str) -> str:
    return _text(step, "allocator", where) if "allocator" in step else ""


def _text(step: Mapping[str, Any], name: str, where: str) -> str:
    value = step.get(name)
    if not isinstance(value, str):
        _refuse(where, f"has {name} {value!r}; it is a text")
    return value


def _table(step: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = step.get(name, {})
    if not isinstance(value, dict):
        _refuse(where, f"has {name} {value!r}; it is an object")
    return value


def _maybe(step: Mapping[str, Any], name: str, where: str) -> int | None:
    return None if step.get(name) is None else _bytes(step[name], f"{where}: {name}")


def _bytes(value: object, where: str) -> int:
    if type(value) is not int or value < 0:
        _refuse(where, f"is {value!r}; it is a whole number of bytes, 0 or more")
    return value


def _refuse(where: str, what: str) -> NoReturn:
    raise UsageError(f"{where} {what}", hint=_HINT)


def _folded(modules: Mapping[tuple[str, str], int]) -> Iterator[tuple[str, int]]:
    """Modules that differ in one number only, without a gap, and hold the same, as one."""
    groups: defaultdict[tuple[tuple[str, ...], int, str, int], list[int]] = defaultdict(list)
    for (path, kind), nbytes in modules.items():
        parts = path.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal() and str(int(part)) == part), -1)
        rest = tuple(_escaped(part) for i, part in enumerate(parts) if i != at)
        groups[rest, at, kind, nbytes].append(int(parts[at]) if at >= 0 else 0)
    for (rest, at, kind, nbytes), numbers in groups.items():
        if at < 0:
            yield f"{'.'.join(rest)} {kind}", nbytes
            continue
        for first, last in _runs(sorted(numbers)):
            middle = str(first) if first == last else f"{first}-{last}"
            yield f"{'.'.join((*rest[:at], middle, *rest[at:]))} {kind}", nbytes


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Gapless runs of rising numbers."""
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def _escaped(part: str) -> str:
    return part.replace("-", "\\-", 1) if _RANGE.fullmatch(part) else part


def _unfolded(path: str, where: str) -> list[str]:
    """Every module that a line stands for."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if _RANGE.fullmatch(part)), -1)
    plain = [re.sub(r"^(\d+)\\-(\d+)$", r"\1-\2", part) for part in parts]
    if at < 0:
        return [".".join(plain)]
    first, last = map(int, parts[at].split("-"))
    if last <= first or last - first > _LONGEST:
        _refuse(where, f"has a range of modules {parts[at]}; it counts up")
    return [".".join((*plain[:at], str(number), *plain[at + 1 :])) for number in range(first, last + 1)]
