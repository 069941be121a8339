"""From measured times to the file that `--cluster`, `--gpu` and `--rates` read: curves, shares, costs and facts.

cpu     the machine itself as a device: its peaks are the best that was measured, its shares are 1, curves say the rest
cuda    the packaged GPU of that name: products and attention as shares of its peaks, since tiles and waves are
        modelled; convolutions and traffic as curves; links as shares of theirs
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dnnmem.estimator.calibration import PARAMETERS
from dnnmem.estimator.calibration_file import write_calibration
from dnnmem.estimator.curve import Curve
from dnnmem.estimator.device import Device

Points = Sequence[Sequence[float]]
_ARITHMETIC = ("gemm", "attention_forward", "attention_backward")
_SHARES = tuple(
    name for name, kind in PARAMETERS.items() if kind in ("arithmetic", "traffic") and "_seconds" not in name
)
_LEAST_SHARE = 0.02
"""Of a case's time, what is at least its own: the rest is the cost of any operator."""
_NEAR = 1.05
"""Points whose sizes differ by less are one."""


def spec_text(found: Mapping[str, Any], device: Device | None, comments: Sequence[str]) -> str:
    """The text of a file for what `measure` found; `device` is the packaged GPU, None for a CPU."""
    curves = curves_of(found["curves"])
    if device is None:
        name = name_of(found["machine"])
        return write_calibration(
            {name: _cpu(found)},
            {},
            {
                **dict.fromkeys(_SHARES, 1.0),
                "l2_boost": 1.0,
                "launch_seconds": found["launch_seconds"],
                "host_seconds": 0.0,
                "iteration_seconds": 0.0,
                "fault_seconds_per_byte": found["fault_seconds_per_byte"],
            },
            curves,
            comments,
        )
    kept = {name: curve for name, curve in curves.items() if not any(label in name for label in _ARITHMETIC)}
    rates = {
        **_reached(found["curves"], device),
        "launch_seconds": found["launch_seconds"],
        "host_seconds": found["host_seconds"],
        **{name: 1.0 for name in _SHARES if name not in (*_ARITHMETIC, "stream", "eager")},
        **_links(found, device),
    }
    return write_calibration({}, {f"{device.name}-here": _node(found, device)}, rates, kept, comments)


def name_of(machine: Mapping[str, Any]) -> str:
    """Name of a CPU's tables: `amd-epyc-2-threads`."""
    words = re.findall(r"[a-z0-9]+", str(machine["name"]).lower().partition("@")[0])
    units = machine["units"]
    return "-".join(
        [*(word for word in words if word not in ("r", "tm", "cpu")), str(units), "thread" + "s" * (units > 1)]
    )


def curves_of(points: Mapping[str, Points]) -> dict[str, Curve]:
    """Curves from points: times made to rise with size, and what any operator costs taken off.

    A fixed cost is that of an operator's own smallest case; arithmetic, whose smallest case is work already, has the
    middle one of the others. It comes back as `launch_seconds`, told from whole steps.
    """
    merged = {name: _rising(raw) for name, raw in points.items() if any(size > 0 for size, _ in raw)}
    smallest = [curve[0][1] for name, curve in merged.items() if not _is_arithmetic(name)]
    middle = statistics.median(smallest) if smallest else 0.0
    found = {}
    for name, curve in merged.items():
        floor = middle if _is_arithmetic(name) else curve[0][1]
        net = [max(seconds - floor, seconds * _LEAST_SHARE) for _, seconds in curve]
        found[name] = Curve(sizes=tuple(size for size, _ in curve), seconds=tuple(net))
    return found


def _is_arithmetic(name: str) -> bool:
    return any(word in name for word in ("gemm", "conv", "attention"))


def _rising(raw: Points) -> list[tuple[float, float]]:
    """Points of one size put together, and neighbours while a larger one is quicker (geometric means)."""
    groups: list[list[tuple[float, float]]] = []
    for size, seconds in sorted((size, seconds) for size, seconds in raw if size > 0):
        if not groups or size > groups[-1][0][0] * _NEAR:
            groups.append([])
        groups[-1].append((size, seconds))
    blocks: list[tuple[list[float], float, int]] = []
    for group in groups:
        size, seconds = _middle(group)
        blocks.append(([size], seconds, len(group)))
        while len(blocks) > 1 and blocks[-2][1] > blocks[-1][1]:
            (sizes, before, some), (more, after, others) = blocks[-2:]
            both = (before**some * after**others) ** (1 / (some + others))
            blocks[-2:] = [(sizes + more, both, some + others)]
    return [(size, seconds) for sizes, seconds, _ in blocks for size in sizes]


def _middle(group: Sequence[tuple[float, float]]) -> tuple[float, float]:
    product = 1.0
    for _, seconds in group:
        product *= seconds ** (1 / len(group))
    return group[0][0], product


def _cpu(found: Mapping[str, Any]) -> dict[str, Any]:
    machine, gib = found["machine"], 2**30
    peak = found["float32_flops_per_s"] / 1e12
    return {
        "vendor": "cpu",
        "arch": "cpu",
        "sm_count": machine["units"],
        "fp32_tflops": round(peak, 5),
        **dict.fromkeys(("tf32_tflops", "fp16_tflops", "fp8_tflops"), 0.0),
        "bf16_tflops": round(found.get("bfloat16_flops_per_s", 0.0) / 1e12, 5),
        "memory_gib": round(machine["memory_bytes"] / gib, 3),
        "usable_gib": round(machine["memory_bytes"] / gib, 3),
        "memory_gb_s": round(found["memory_bytes_per_s"] / 1e9, 2),
        "l2_mib": machine["cache_bytes"] / 2**20,
        "link": "none",
        "link_gb_s": 0.0,
        "pcie_gb_s": round(found["memory_bytes_per_s"] / 1e9, 2),
        "source": "dnnmem calibrate: best product and largest plain traffic measured; its power is not known",
    }


def _node(found: Mapping[str, Any], device: Device) -> dict[str, Any]:
    linked = device.link_bytes_per_s > 0
    return {
        "device": device.name,
        "gpus": found["machine"]["count"],
        "link": device.link if linked else f"pcie{device.pcie_generation}",
        "link_gb_s": (device.link_bytes_per_s if linked else device.pcie_bytes_per_s) / 1e9,
        "source": f"dnnmem calibrate; links as the facts of {device.name} have them, their shares under [rates]",
    }


def _reached(points: Mapping[str, Points], device: Device) -> dict[str, float]:
    """Shares of the GPU's peaks at the largest sizes."""
    found: dict[str, float] = {}
    for name, raw in points.items():
        dtype, _, label = name.rpartition("gemm-") if "gemm-" in name else ("", "", name)
        kind = next((kind for kind in _ARITHMETIC if kind in name), None)
        dtype = next((known for known in device.flops_per_s if name.startswith(known)), "float32")
        if kind and "batched" not in name and label:
            size, seconds = max(map(tuple, raw))
            found[kind] = max(found.get(kind, 0.0), size / seconds / device.flops_per_s[dtype])
    for kind in ("stream", "eager"):
        size, seconds = max(map(tuple, points[kind]))
        found[kind] = size / seconds / device.memory_bytes_per_s
    return found


def _links(found: Mapping[str, Any], device: Device) -> dict[str, float]:
    """Share of the bus, and of the links between GPUs where ranks measured them (the ring's formula)."""
    rates: dict[str, float] = {}
    if found["copies"]:
        slowest = max(max(map(tuple, points)) for points in found["copies"].values())
        least = min(seconds for points in found["copies"].values() for _, seconds in points)
        rates = {"pcie": slowest[0] / slowest[1] / device.pcie_bytes_per_s, "pcie_latency_seconds": least}
    reduced = found.get("collectives", {}).get("all_reduce")
    if reduced and device.link_bytes_per_s:
        ranks = found["ranks"]
        size, seconds = max(map(tuple, reduced))
        least = min(seconds for _, seconds in reduced)
        rates["nvlink"] = 2 * (ranks - 1) / ranks * size / max(seconds - least, 1e-9) / device.link_bytes_per_s
    return rates
