"""What a GPU reaches of its peaks, and what each kernel, dispatch and message costs besides: the model's parameters.

They are physics with priors, never rows: one share a kind of kernel, fitted once per architecture on published data
(`specs/time_model.toml`), and replaced by a site's own after a calibration.

>>> from dnnmem.estimator.devices import find_device
>>> model = load(find_device("a100-sxm-80gb"))
>>> 0.7 < model.gemm < 0.9, round(model.host_seconds * 1e6)
(True, 12)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dnnmem.estimator.curve import Curve
from dnnmem.estimator.device import Device

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeModel:
    """Achieved shares (of a peak of `Device` or of a link) and fixed costs in seconds."""

    gemm: float
    """Matrix products: share of the dtype's peak with all multiprocessors busy."""
    attention_forward: float
    """Fused attention: share of the dtype's peak over the flops that are not skipped."""
    attention_backward: float
    """The same for its backward, whose flops count the scores again."""
    cudnn_attention: float = 1.0
    """How much faster than those shares cuDNN's fused attention is, which torch takes on Hopper and Blackwell."""
    conv: float
    """Dense convolutions: share of the dtype's peak over padded channels."""
    grouped_conv: float
    """Grouped convolutions with 4, 8, 16, 32 or 64 channels in each of 8, 16, .. groups: the same."""
    odd_grouped_conv: float
    """Other grouped convolutions over images with channels last: the same."""
    turned_grouped_conv: float
    """Grouped convolutions in half precision over images whose channels lie apart: the same, of 64 channels or more.

    Narrower groups leave columns of a tile idle.
    """
    depthwise_conv: float
    """Depthwise convolutions: share of memory bandwidth."""
    stream: float
    """Kernels over whole blocks in order: share of memory bandwidth."""
    eager: float
    """Element-wise kernels that broadcast, cast or permute: share of memory bandwidth."""
    norm: float
    """Layer, group and root-mean-square norms: share of memory bandwidth over the least bytes."""
    norm_backward: float
    """Their gradients: the same; those of the weights walk the columns once more."""
    batch_norm: float
    """Batch norms in training, forward and backward: the same."""
    softmax: float
    """Softmax and its logarithm: the same."""
    row_seconds: float
    """One multiprocessor's time for a softmax row that takes a block of threads, while it moves nothing."""
    reduction: float
    """Sums, means, extrema: the same."""
    index_seconds: float
    """One multiprocessor's time for an element picked or added by an index, beside its bytes."""
    l2_boost: float
    """How much faster than memory the cache gives what lies in it."""
    launch_seconds: float
    """Start and end of a kernel on the GPU, while it moves nothing."""
    host_seconds: float
    """The host's time for one dispatched operator: a constant of the site, not of the GPU."""
    iteration_seconds: float
    """Once a step: data loader, logging, the loop."""
    power_exponent: float
    """Arithmetic of a card with less power for a flop than the reference runs at the ratio to this exponent."""
    reference_watts: float
    """Power limit of the card on which `gemm`, `conv` and attention were found; 0 = no rule."""
    reference_flops_per_s: float
    """Peak in float16 of that card."""
    nvlink: float
    """Collectives inside a node over NVLink: share of the link's one-way peak."""
    nvlink_latency_seconds: float
    """One collective inside a node."""
    pcie: float
    """Share of the PCIe peak, for messages and copies."""
    pcie_latency_seconds: float
    """One message over PCIe."""
    network: float
    """Share of the node's network."""
    network_latency_seconds: float
    """One collective or message between nodes."""
    spread: Mapping[str, float]
    """Standard deviations of log(measured / predicted): a site's by `arithmetic`, `traffic`, `communication` and
    `host`, and a single step's by itself, `step`."""
    contention: float = 0.0
    """What a second of kernels takes longer while a collective runs beside them."""
    host_backward: float = 1.0
    """The host's time for an operator of the backward pass, in parts of `host_seconds`: C++ issues it, not Python."""
    traced_layer: bool = False
    """True where a table is no measured step but a sum of parts of one traced layer (`traced_layer.py`)."""
    fault_seconds_per_byte: float = 0.0
    """A CPU's first write to memory that its allocator has got from the system; 0 on a GPU, which keeps memory."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Measured seconds of kinds of ops (`measured_rates`): they stand in the place of share times peak."""


_SHARES = {"gemm": "gemm", "attention_forward": "flash", "stream": "stream", "eager": "eager"}
"""Shares that `Device.efficiency` knows, by its names."""
_SITES = "site"
_UNITS = {
    "share": ("", 1.0),
    "us": ("_seconds", 1e-6),
    "ms": ("_seconds", 1e-3),
    "ns": ("_seconds", 1e-9),
    "w": ("_watts", 1.0),
    "tflops": ("_flops_per_s", 1e12),
}


def load(device: Device, rates: Path | None = None, *, site: str = "") -> TimeModel:
    """The parameters for `device`: its family's (`rtx`), its architecture's, its own `efficiency`, the defaults.

    `site` names one whose steps were published: its host, its loop and its attention kernels are its own. What the
    calibration file `rates` holds wins. Raises `UsageError` where that is none.
    """
    tables = _tables()
    arch = {**tables.get(device.arch, {}), **tables.get(device.name.partition("-")[0], {})}
    own = {name: device.efficiency[key] for name, key in _SHARES.items() if key in device.efficiency}
    values = {
        "reference_watts": 0.0,
        "reference_flops_per_s": 1.0,
        **tables["fallback"],
        **tables["default"],
        **own,
        **arch,
    }
    spread = {key.removeprefix("spread_"): value for key, value in values.items() if key.startswith("spread_")}
    model = TimeModel(spread=spread, **{key: value for key, value in values.items() if not key.startswith("spread_")})
    model = at_site(model, _sites().get(site, {}))
    if rates is None:
        return model
    from dnnmem.estimator.calibration_file import read_rates  # reads this module's names

    return read_rates(rates, model)


def at_site(model: TimeModel, own: Mapping[str, float]) -> TimeModel:
    """`model` with a site's own parameters; `attention` is a factor on both of its shares.

    >>> from dnnmem.estimator.devices import find_device
    >>> model = load(find_device("a100-sxm-80gb"))
    >>> at_site(model, {"attention": 0.5}).attention_forward / model.attention_forward
    0.5
    """
    factor = own.get("attention", 1.0)
    values: dict[str, Any] = {name: value for name, value in own.items() if name != "attention"}
    values |= {name: getattr(model, name) * factor for name in ("attention_forward", "attention_backward")}
    return replace(model, **values)


@cache
def _tables() -> dict[str, dict[str, Any]]:
    return {name: read_parameters(table) for name, table in _file().items() if name != _SITES}


@cache
def _sites() -> dict[str, dict[str, float]]:
    return {name: read_parameters(table) for name, table in _file().get(_SITES, {}).items()}


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads((resources.files("dnnmem.estimator") / "specs" / "time_model.toml").read_text("utf-8"))


def read_parameters(table: Mapping[str, float]) -> dict[str, float]:
    """Parameters by field from keys that carry units: `launch_us = 3` is `launch_seconds = 3e-6`."""
    return {_field(key): _value(key, value) for key, value in table.items()}


def _field(key: str) -> str:
    name, _, unit = key.rpartition("_")
    return name + _UNITS[unit][0] if name and unit in _UNITS else key


def _value(key: str, value: float) -> float:
    unit = key.rpartition("_")[2]
    return value * _UNITS[unit][1] if unit in _UNITS else value
