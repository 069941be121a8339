"""What a test asks for: the limit of its marker, and where it runs.

auto  ->  cuda where there is a GPU, else virtual where that works, else fake
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from dnnmem.cli.pytest_plugin import MARKER
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.units import parse_bytes

if TYPE_CHECKING:
    from dnnmem.estimator.device import Device

DEVICES = ("auto", "cpu", "fake", "virtual", "cuda")
"""What a marker may name."""
_EXAMPLE = f'@pytest.mark.{MARKER}("4 GiB", device="virtual", gpu="a10g")'


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A marker, read."""

    limit_bytes: int | None
    """The most that the test may need; None = only measured."""
    device: str
    """`cpu`, `fake`, `virtual` or `cuda`."""
    gpu: Device | None
    """Whose memory it is; None = none was named."""


def read_marker(item: pytest.Item) -> Asked:
    """What the nearest marker of `item` asks for. Raises a `DnnmemError` for what cannot be."""
    needs_torch()
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return Asked(limit_bytes=None, device="cuda" if has_gpu() else "cpu", gpu=None)
    words = {**dict(zip(("limit", "device", "gpu"), marker.args, strict=False)), **marker.kwargs}
    unknown = [*marker.args[3:], *(words.keys() - {"limit", "device", "gpu"})]
    if unknown or "limit" not in words:
        wrong = f"takes no {unknown[0]!r}" if unknown else "needs a limit"
        raise UsageError(f"{MARKER} {wrong}", hint=_EXAMPLE)
    return Asked(limit_bytes=_limit(words["limit"]), device=choose(words.get("device")), gpu=find_gpu(words.get("gpu")))


def choose(device: object) -> str:
    """The device that is meant here. Raises `UsageError` for one that is none."""
    named = "auto" if device is None else device
    if named not in DEVICES:
        raise UsageError(f"device {device!r} is none of {', '.join(DEVICES)}", hint=_EXAMPLE)
    if named != "auto":
        return str(named)
    if has_gpu():
        return "cuda"
    from dnnmem.profilers.virtual_gpu.launch import unavailable

    return "fake" if unavailable() else "virtual"


def find_gpu(name: object) -> Device | None:
    """The GPU of that name. Raises `UsageError`."""
    if name is None:
        return None
    from dnnmem.estimator.devices import find_device

    return find_device(str(name))


def has_gpu() -> bool:
    """Whether this machine has a GPU, by NVML: torch is not asked, which would start CUDA."""
    from dnnmem.profilers import monitor

    return monitor.read().used_bytes is not None


def needs_torch() -> None:
    """Raise `UnsupportedError` without torch."""
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("measuring a test needs torch, which is not installed here", hint="pip install torch")


def _limit(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or (isinstance(value, int) and value < 0):
        raise UsageError(f"the limit is {value!r}; it is a size", hint=_EXAMPLE)
    return parse_bytes(str(value))
