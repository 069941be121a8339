r"""What `dnnmem calibrate` writes and `--cluster`, `--gpu` and `--rates` read: a machine, its rates and its curves.

    schema = "dnnmem.calibration/1"
    [devices.NAME]    as in nvidia.toml; left out where the GPU is a packaged one
    [nodes.NAME]      as in nodes.toml
    [rates]           as in time_model.toml; what is left out keeps its packaged value
    [curves.gemm-64]  size = [flops or bytes], us = [...]

>>> gelu = Curve(sizes=(1e6,), seconds=(1e-4,))
>>> print(write_calibration({}, {}, {"gemm": 0.7, "launch_seconds": 2e-6}, {"gelu": gelu}))
schema = "dnnmem.calibration/1"
<BLANKLINE>
[rates]
gemm_share = 0.7
launch_us = 2.0
<BLANKLINE>
[curves.gelu]
size = [1000000.0]
us = [100.0]
<BLANKLINE>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dnnmem.estimator.curve import Curve
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.time_model import TimeModel, read_parameters
from dnnmem.estimator.toml_values import SCHEMA, number, parse_tables, read_file

_FAULT = "fault_us_per_mib"
_US_PER_MIB = 1e-6 / 2**20
_PLAIN = ("l2_boost", "power_exponent")
Table = Mapping[str, Any]


def is_calibration(path: str) -> bool:
    """Whether the file at `path` is one. Raises `UsageError` where it cannot be read or is not TOML."""
    return parse_tables(read_file(path), path).get("schema") == SCHEMA


def read_rates(path: Path, model: TimeModel) -> TimeModel:
    """`model` with what the file says of rates and curves. Raises `UsageError` for a faulty file, key or value."""
    tables = parse_tables(read_file(str(path)), str(path))
    if tables.get("schema") != SCHEMA:
        raise UsageError(f"{path} is no calibration: its schema is not {SCHEMA}", hint="dnnmem calibrate writes one")
    rates, curves = _table(tables, "rates", path), _table(tables, "curves", path)
    values = _values(rates, path)
    spread = {key.removeprefix("spread_"): values.pop(key) for key in list(values) if key.startswith("spread_")}
    unknown = set(values) - {f.name for f in fields(TimeModel)} | set(spread) - set(model.spread)
    if unknown:
        raise UsageError(f"{path}: [rates] has {', '.join(sorted(unknown))}, which means nothing")
    read = {name: _curve(name, table, path) for name, table in curves.items()}
    known: dict[str, Any] = values
    return replace(model, **known, spread={**model.spread, **spread}, curves={**model.curves, **read})


def _table(tables: Table, name: str, path: Path) -> Table:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} is no table", hint=f"put its values under [{name}]")
    return table


def _values(rates: Table, path: Path) -> dict[str, float]:
    wrong = [f"{key} = {value!r}" for key, value in rates.items() if type(value) not in (int, float) or value < 0]
    if wrong:
        raise UsageError(f"{path}: [rates] has {', '.join(wrong)}; a rate is a number of 0 or more")
    values = read_parameters({key: value for key, value in rates.items() if key != _FAULT})
    if _FAULT in rates:
        values["fault_seconds_per_byte"] = rates[_FAULT] * _US_PER_MIB
    return values


def _curve(name: str, table: object, path: Path) -> Curve:
    if not isinstance(table, dict) or set(table) != {"size", "us"}:
        raise UsageError(f"{path}: [curves.{name}] holds size = [...] and us = [...], and nothing else")
    try:
        sizes, us = (tuple(number(value) for value in table[key]) for key in ("size", "us"))
        return Curve(sizes=sizes, seconds=tuple(value * 1e-6 for value in us))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: [curves.{name}]: a value {error}") from None
    except UsageError as error:
        raise UsageError(f"{path}: [curves.{name}]: {error.message}") from None


def write_calibration(
    devices: Mapping[str, Table],
    nodes: Mapping[str, Table],
    rates: Mapping[str, float],
    curves: Mapping[str, Curve],
    comments: Sequence[str] = (),
) -> str:
    """The text of a file; `rates` by field of `TimeModel`, or `spread_` and a kind of work."""
    lines = [f"# {text}" for text in comments] + [f'schema = "{SCHEMA}"', ""]
    for part, tables in (("devices", devices), ("nodes", nodes)):
        for name, table in tables.items():
            lines += [f"[{part}.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""]
    lines += ["[rates]", *(_rate(name, value) for name, value in rates.items()), ""]
    for name, curve in curves.items():
        us = [_short(1e6 * value) for value in curve.seconds]
        lines += [f"[curves.{name}]", f"size = {[_short(size) for size in curve.sizes]}", f"us = {us}", ""]
    return "\n".join(lines)


def _rate(name: str, value: float) -> str:
    if name == "fault_seconds_per_byte":
        return f"{_FAULT} = {_short(value / _US_PER_MIB)}"
    if name.endswith("_seconds"):
        return f"{name.removesuffix('_seconds')}_us = {_short(value * 1e6)}"
    if name.endswith("_watts"):
        return f"{name.removesuffix('_watts')}_w = {_short(value)}"
    return f"{name if name in _PLAIN or name.startswith('spread_') else name + '_share'} = {_short(value)}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")
