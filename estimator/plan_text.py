"""Plans as text: `--set part.name=value`, and JSON files that are read with care.

>>> plan = change(Plan(), ["mesh.tp=2", "mesh.dp_shard=4", "sharding.strategy=zero3"])
>>> plan.mesh.world_size, plan.sharding.strategy, from_json(to_json(plan)) == plan
(8, 'zero3', True)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Plan, check

SCHEMA = "dnnmem.plan/1"


def change(plan: Plan, settings: Iterable[str]) -> Plan:
    """`plan` with each `part.name=value` of `settings` set, checked. Raises `UsageError` for what cannot be."""
    for setting in settings:
        part, name, value = read_setting(setting)
        plan = replace(plan, **{part: replace(getattr(plan, part), **{name: value})})
    check(plan)
    return plan


def read_setting(setting: str) -> tuple[str, str, object]:
    """Part, name and value of `part.name=value`. Raises `UsageError` for what cannot be."""
    key, equals, text = setting.partition("=")
    part, _, name = key.strip().partition(".")
    if not equals or part not in _parts() or name not in _types(part):
        near = [known for known in _known() if part and known.startswith(f"{part}.")]
        raise UsageError(f"--set {setting} names nothing of a plan", hint=f"known: {', '.join(near or _known())}")
    return part, name, _read(setting, text.strip(), _types(part)[name])


def settings(plan: Plan) -> tuple[str, ...]:
    """What is not at its default, as `change` takes it.

    >>> settings(change(Plan(), ["remat.policy=full", "precision.param=float32"]))
    ('precision.param=float32', 'remat.policy=full')
    """
    found = []
    for part in _parts():
        now, default = getattr(plan, part), getattr(Plan(), part)
        names = (f.name for f in fields(now) if getattr(now, f.name) != getattr(default, f.name))
        found += [f"{part}.{name}={_written(getattr(now, name))}" for name in names]
    return tuple(found)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as an object for JSON."""
    return {"schema": SCHEMA, **asdict(plan)}


def from_json(data: object, where: str = "plan") -> Plan:
    """The plan of a JSON object; what is left out keeps its default. Raises `UsageError`, beginning with `where`."""
    if not isinstance(data, Mapping) or data.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(f"{where} is no plan: an object with schema {SCHEMA} is needed", hint=_other_file(data))
    plan = Plan()
    for part, table in data.items():
        if part == "schema":
            continue
        if part not in _parts() or not isinstance(table, Mapping) or set(table) - set(_types(part)):
            raise UsageError(f"{where}: {part} means nothing in a plan", hint=f"known: {', '.join(_known())}")
        values = {name: _as_number(value, _types(part)[name]) for name, value in table.items()}
        for name, value in values.items():
            _check_type(f"{where}: {part}.{name}", value, _types(part)[name])
        plan = replace(plan, **{part: replace(getattr(plan, part), **values)})
    check(plan)
    return plan


def _other_file(data: object) -> str:
    """The way out for who gave another file of dnnmem's."""
    if isinstance(data, Mapping) and str(data.get("schema", "")).startswith("dnnmem.recommend/"):
        return "it is a whole recommendation: --plan 1 takes a rank of the last one, --save-plans DIR writes each"
    if isinstance(data, Mapping) and "schema" in data:
        return f"its schema is {data['schema']}; dnnmem explain 1 --plan-out plan.json writes a plan"
    return ""


def _parts() -> dict[str, type]:
    return {f.name: type(getattr(Plan(), f.name)) for f in fields(Plan)}


def _types(part: str) -> dict[str, str]:
    return {f.name: str(f.type) for f in fields(_parts()[part])}


def _known() -> list[str]:
    return [f"{part}.{name}" for part in _parts() for name in _types(part)]


def _written(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _read(setting: str, text: str, kind: str) -> object:
    if text.lower() in ("none", "null") and "None" in kind:
        return None
    value: object = text
    if "str" not in kind:
        try:
            value = _as_number(json.loads(text.lower()), kind)
        except json.JSONDecodeError:
            value = text
    _check_type(f"--set {setting}", value, kind)
    return value


def _as_number(value: object, kind: str) -> object:
    """A whole number where any number may stand is one."""
    return float(value) if type(value) is int and "float" in kind else value


def _check_type(where: str, value: object, kind: str) -> None:
    if value is None and "None" in kind:
        return
    wanted = next((some for some in (bool, int, float) if some.__name__ in kind), str)
    if type(value) is not wanted:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise UsageError(f"{where} has {value!r}; it is {names[wanted]}")
