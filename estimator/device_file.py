r"""How a GPU is written down: TOML tables whose keys carry their units, read into `Device`s and checked key by key.

    [my-gpu]
    sm_count = 80            ->   sm_count=80
    memory_gb_s = 900.0      ->   memory_bytes_per_s=900e9
    context_mib = 384        ->   context_bytes=402653184      (may be left out: modelled on NVIDIA's, else unknown)

>>> parse_devices("[my-gpu]\nsm_count = -1", "my.toml")
Traceback (most recent call last):
dnnmem.estimator.errors.UsageError: my.toml: [my-gpu] lacks vendor, arch, compute_capability and 20 more
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dnnmem.estimator.context_memory import SOURCE, modelled_context
from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_RATES = {
    "fp32_tflops": "float32",
    "tf32_tflops": "tf32",
    "fp16_tflops": "float16",
    "bf16_tflops": "bfloat16",
    "fp8_tflops": "float8",
}
_SHARES = ("gemm", "stream", "eager", "flash")
_REQUIRED = object()


class _Key(NamedTuple):
    """One key of a table."""

    field: str
    """Field of `Device`; for a rate, its dtype."""
    read: Callable[[Any], Any]
    """Makes the field's value; raises `ValueError` with the rule that the value breaks."""
    default: Any = _REQUIRED
    """Value where the key is left out."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")  # noqa: TRY004  (one kind of error for every rule)
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def _number(value: object, *, least: float = 0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise ValueError(f"must be a number of {least:g} or more")
    return value


def _scaled(factor: float) -> Callable[[Any], float]:
    return lambda value: _number(value) * factor


def _size(unit: int) -> Callable[[Any], int]:
    """Whole bytes, at least 1."""

    def read(value: object) -> int:
        nbytes = round(_number(value) * unit)
        if not nbytes:
            raise ValueError("must be above 0")
        return nbytes

    return read


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number of 1 or more")
    return value


def _price(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("must be [low, high]")
    low, high = _number(value[0]), _number(value[1])
    if low > high:
        raise ValueError("must be [low, high] with low not above high")
    return (low, high) if high else None


def _range(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("must be [low, high]")
    low, high = (_size(2**20)(end) for end in value)
    if low > high:
        raise ValueError("must be [low, high], low first")
    return low, high


def _shares(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or sorted(value) != sorted(_SHARES):
        raise ValueError(f"must be a table of {', '.join(_SHARES)}")
    return {name: _number(share) for name, share in value.items()}


_KEYS: dict[str, _Key] = {
    "vendor": _Key("vendor", _text),
    "arch": _Key("arch", _text),
    "compute_capability": _Key("compute_capability", _text),
    "sm_count": _Key("sm_count", _count),
    **{key: _Key(dtype, _scaled(1e12)) for key, dtype in _RATES.items()},
    "memory_gib": _Key("memory_bytes", _size(2**30)),
    "usable_gib": _Key("usable_bytes", _size(2**30)),
    "memory_gb_s": _Key("memory_bytes_per_s", _scaled(1e9)),
    "l2_mib": _Key("l2_bytes", _size(2**20)),
    "smem_per_sm_kib": _Key("smem_per_sm_bytes", _size(2**10)),
    "smem_per_block_kib": _Key("smem_per_block_bytes", _size(2**10)),
    "registers_per_sm": _Key("registers_per_sm", _count),
    "threads_per_sm": _Key("threads_per_sm", _count),
    "blocks_per_sm": _Key("blocks_per_sm", _count),
    "link": _Key("link", _text),
    "link_gb_s": _Key("link_bytes_per_s", _scaled(1e9)),
    "pcie_generation": _Key("pcie_generation", _count),
    "pcie_gb_s": _Key("pcie_bytes_per_s", _scaled(1e9)),
    "power_w": _Key("power_watts", _count),
    "source": _Key("source", _text),
    "aliases": _Key("aliases", _texts, ()),
    "confidence": _Key("confidence", _text, "likely"),
    "context_mib": _Key("context_bytes", _size(2**20), None),
    "context_range_mib": _Key("context_range_bytes", _range, None),
    "context_source": _Key("context_source", _text, ""),
    "price_usd_per_h": _Key("price_usd_per_h", _price, None),
    "price_source": _Key("price_source", _text, ""),
    "efficiency": _Key("efficiency", _shares, {}),
    "efficiency_source": _Key("efficiency_source", _text, ""),
    "efficiency_gemm_kind": _Key("gemm_kind", _text, "book"),
    "note": _Key("note", _text, ""),
}


def parse_devices(text: str, where: str) -> dict[str, Device]:
    """Devices of a TOML text by name. Raises `UsageError`, beginning with `where`, for a faulty form, key or value."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}") from None
    return {name: _device(name, table, where) for name, table in tables.items()}


def _device(name: str, table: object, where: str) -> Device:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: {name} is no table", hint="put the facts of a GPU under its name: [my-gpu]")
    _check_keys(table, f"{where}: [{name}]")
    values = {entry.field: _value(table, key, entry, f"{where}: [{name}]") for key, entry in _KEYS.items()}
    rates = {dtype: values.pop(dtype) for dtype in _RATES.values()}
    if values["usable_bytes"] > values["memory_bytes"]:
        raise UsageError(f"{where}: [{name}] usable_gib is above memory_gib; a driver offers less than the card holds")
    if values["context_bytes"] is None and values["vendor"] == "nvidia":
        low, likely, high = modelled_context(sm_count=values["sm_count"], threads_per_sm=values["threads_per_sm"])
        values |= {"context_bytes": likely, "context_range_bytes": (low, high), "context_source": SOURCE}
    return Device(name=name, flops_per_s={dtype: rate for dtype, rate in rates.items() if rate}, **values)


def _check_keys(table: Mapping[str, Any], where: str) -> None:
    missing = [key for key, entry in _KEYS.items() if entry.default is _REQUIRED and key not in table]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(f"{where} lacks {', '.join(missing[:3])}{more}", hint=f"it needs {', '.join(missing)}")
    unknown = [key for key in table if key not in _KEYS]
    if unknown:
        raise UsageError(f"{where} has {', '.join(unknown)}, which means nothing", hint=f"known: {', '.join(_KEYS)}")


def _value(table: Mapping[str, Any], key: str, entry: _Key, where: str) -> Any:  # noqa: ANN401  (as the field is)
    if key not in table:
        return entry.default
    try:
        return entry.read(table[key])
    except ValueError as error:
        raise UsageError(f"{where} {key} = {table[key]!r}; it {error}") from None
