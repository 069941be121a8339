"""What one GPU model can do: the numbers that decide whether a step fits on it, and how long it takes there.

>>> from dnnmem.estimator.devices import find_device
>>> device = find_device("h100")
>>> round(device.usable_bytes / 2**30, 2), round(device.flops_per_s["bfloat16"] / device.memory_bytes_per_s)
(79.1, 295)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU model. Rates are per second and peak; bytes are whole."""

    name: str
    """Name in `specs/`: `h100-sxm-80gb`."""
    aliases: tuple[str, ...]
    """Other names of it."""
    cuda_name: str
    """What `torch.cuda.get_device_name()` answers there; empty = not known."""
    vendor: str
    """`nvidia` or `amd` (ROCm)."""
    arch: str
    """Generation: `hopper`, `cdna3`."""
    compute_capability: str
    """`9.0`; on AMD the target, `gfx942`."""
    sm_count: int
    """Streaming multiprocessors, or compute units."""
    flops_per_s: Mapping[str, float]
    """Dense peak (fp32 accumulate) by `float32`, `tf32`, `float16`, `bfloat16`, `float8`; absent = not in hardware."""
    memory_bytes: int
    """Memory on the card."""
    usable_bytes: int
    """What the driver offers to processes: `total_memory` of torch."""
    context_bytes: int | None
    """What a PyTorch process uses of it outside its allocator (CUDA context, kernels, libraries); None = unknown."""
    context_range_bytes: tuple[int, int] | None
    """Low and high of what was published of it, or of the model's interval; None = unknown."""
    context_source: str
    """Evidence for `context_bytes`; begins with `modelled` where nobody has published it."""
    memory_bytes_per_s: float
    """Bandwidth of its memory."""
    l2_bytes: int
    """Level-2 cache."""
    smem_per_sm_bytes: int
    """Shared memory of one multiprocessor."""
    smem_per_block_bytes: int
    """Most shared memory of one block, opted in."""
    registers_per_sm: int
    """32-bit registers."""
    threads_per_sm: int
    """Most resident threads."""
    blocks_per_sm: int
    """Most resident blocks."""
    link: str
    """`nvlink4`, `xgmi`, `pcie` or `none`."""
    link_bytes_per_s: float
    """To other GPUs, one direction, all links of one GPU; 0 = none."""
    pcie_generation: int
    """Of the bus to the host."""
    pcie_bytes_per_s: float
    """To the host, one direction."""
    power_watts: int
    """Board power limit."""
    price_usd_per_h: tuple[float, float] | None
    """Low and high of rental offers, approximate; None = unknown."""
    price_source: str
    """Evidence for the price."""
    efficiency: Mapping[str, float]
    """Reachable share of the peaks, as the time model starts with: `gemm`, `stream`, `eager`, `flash`."""
    efficiency_source: str
    """Evidence for the shares."""
    gemm_kind: str
    """`fit` if the share of `gemm` comes from measurements, `book` if from books."""
    source: str
    """Where the other numbers come from."""
    confidence: str
    """`sure`, or `likely` if a number is to be checked."""
    note: str
    """What to know about a number; may be empty."""
