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

from dnnmem.estimator.context_memory import SOURCE, modelled_context
from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.toml_values import Key, count, number, parse_tables, price, read_table, scaled, size, text, texts

_RATES = {
    "fp32_tflops": "float32",
    "tf32_tflops": "tf32",
    "fp16_tflops": "float16",
    "bf16_tflops": "bfloat16",
    "fp8_tflops": "float8",
}
_SHARES = ("gemm", "stream", "eager", "flash")


def _range(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("must be [low, high]")
    low, high = (size(2**20)(end) for end in value)
    if low > high:
        raise ValueError("must be [low, high], low first")
    return low, high


def _shares(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or sorted(value) != sorted(_SHARES):
        raise ValueError(f"must be a table of {', '.join(_SHARES)}")
    return {name: number(share) for name, share in value.items()}


_KEYS: dict[str, Key] = {
    "vendor": Key("vendor", text),
    "arch": Key("arch", text),
    "compute_capability": Key("compute_capability", text),
    "sm_count": Key("sm_count", count),
    **{key: Key(dtype, scaled(1e12)) for key, dtype in _RATES.items()},
    "memory_gib": Key("memory_bytes", size(2**30)),
    "usable_gib": Key("usable_bytes", size(2**30)),
    "memory_gb_s": Key("memory_bytes_per_s", scaled(1e9)),
    "l2_mib": Key("l2_bytes", size(2**20)),
    "smem_per_sm_kib": Key("smem_per_sm_bytes", size(2**10)),
    "smem_per_block_kib": Key("smem_per_block_bytes", size(2**10)),
    "registers_per_sm": Key("registers_per_sm", count),
    "threads_per_sm": Key("threads_per_sm", count),
    "blocks_per_sm": Key("blocks_per_sm", count),
    "link": Key("link", text),
    "link_gb_s": Key("link_bytes_per_s", scaled(1e9)),
    "pcie_generation": Key("pcie_generation", count),
    "pcie_gb_s": Key("pcie_bytes_per_s", scaled(1e9)),
    "power_w": Key("power_watts", count),
    "source": Key("source", text),
    "aliases": Key("aliases", texts, ()),
    "cuda_name": Key("cuda_name", text, ""),
    "confidence": Key("confidence", text, "likely"),
    "context_mib": Key("context_bytes", size(2**20), None),
    "context_range_mib": Key("context_range_bytes", _range, None),
    "context_source": Key("context_source", text, ""),
    "price_usd_per_h": Key("price_usd_per_h", price, None),
    "price_source": Key("price_source", text, ""),
    "efficiency": Key("efficiency", _shares, {}),
    "efficiency_source": Key("efficiency_source", text, ""),
    "efficiency_gemm_kind": Key("gemm_kind", text, "book"),
    "note": Key("note", text, ""),
}
_ONLY_ON_A_GPU = (
    "pcie_generation", "power_w", "smem_per_sm_kib", "smem_per_block_kib", "registers_per_sm", "threads_per_sm",
    "blocks_per_sm", "compute_capability",
)  # fmt: skip
_CPU_KEYS = {
    key: entry._replace(default="" if entry.read is text else 0) if key in _ONLY_ON_A_GPU else entry
    for key, entry in _KEYS.items()
}
"""A CPU is a device too: `dnnmem calibrate` writes one. Its threads are `sm_count`, its last cache `l2_mib`."""


def parse_devices(toml: str, where: str) -> dict[str, Device]:
    """Devices of a TOML text by name. Raises `UsageError`, beginning with `where`, for a faulty form, key or value."""
    return {name: _device(name, table, where) for name, table in parse_tables(toml, where, "devices").items()}


def _device(name: str, table: object, where: str) -> Device:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: {name} is no table", hint="put the facts of a GPU under its name: [my-gpu]")
    values = read_table(table, _CPU_KEYS if table.get("vendor") == "cpu" else _KEYS, f"{where}: [{name}]")
    rates = {dtype: values.pop(dtype) for dtype in _RATES.values()}
    if values["usable_bytes"] > values["memory_bytes"]:
        raise UsageError(f"{where}: [{name}] usable_gib is above memory_gib; a driver offers less than the card holds")
    if values["context_bytes"] is None and values["vendor"] == "nvidia":
        low, likely, high = modelled_context(sm_count=values["sm_count"], threads_per_sm=values["threads_per_sm"])
        values |= {"context_bytes": likely, "context_range_bytes": (low, high), "context_source": SOURCE}
    return Device(name=name, flops_per_s={dtype: rate for dtype, rate in rates.items() if rate}, **values)
