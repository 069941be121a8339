"""What a virtual GPU says of itself: a `Device` as the attributes that CUDA has, each consistent with the others.

torch, its kernels' host code and Triton choose kernels, block counts and temporaries by these. What the table of GPUs
knows comes from there; what all GPUs of a generation share comes from the CUDA C++ Programming Guide, "Compute
Capabilities"; the clocks are those that give the table's rates.

>>> from dnnmem.estimator.devices import find_device
>>> device = find_device("rtx-4090")
>>> cuda_name(device), attributes(device)["COMPUTE_CAPABILITY_MINOR"]
('NVIDIA GeForce RTX 4090', 9)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import astuple

from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.nccl_memory import way_bytes
from dnnmem.profilers.virtual_gpu.installed import WITHOUT

NUMBERS: Mapping[str, int] = {
    "MAX_THREADS_PER_BLOCK": 1, "MAX_BLOCK_DIM_X": 2, "MAX_BLOCK_DIM_Y": 3, "MAX_BLOCK_DIM_Z": 4, "MAX_GRID_DIM_X": 5,
    "MAX_GRID_DIM_Y": 6, "MAX_GRID_DIM_Z": 7, "MAX_SHARED_MEMORY_PER_BLOCK": 8, "TOTAL_CONSTANT_MEMORY": 9,
    "WARP_SIZE": 10, "MAX_PITCH": 11, "MAX_REGISTERS_PER_BLOCK": 12, "CLOCK_RATE": 13, "TEXTURE_ALIGNMENT": 14,
    "GPU_OVERLAP": 15, "MULTIPROCESSOR_COUNT": 16, "CAN_MAP_HOST_MEMORY": 19, "MAXIMUM_TEXTURE1D_WIDTH": 21,
    "SURFACE_ALIGNMENT": 30, "CONCURRENT_KERNELS": 31, "MEMORY_CLOCK_RATE": 36, "GLOBAL_MEMORY_BUS_WIDTH": 37,
    "L2_CACHE_SIZE": 38, "MAX_THREADS_PER_MULTIPROCESSOR": 39, "ASYNC_ENGINE_COUNT": 40, "UNIFIED_ADDRESSING": 41,
    "TEXTURE_PITCH_ALIGNMENT": 51, "COMPUTE_CAPABILITY_MAJOR": 75, "COMPUTE_CAPABILITY_MINOR": 76,
    "STREAM_PRIORITIES_SUPPORTED": 78, "GLOBAL_L1_CACHE_SUPPORTED": 79, "LOCAL_L1_CACHE_SUPPORTED": 80,
    "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": 81, "MAX_REGISTERS_PER_MULTIPROCESSOR": 82, "MANAGED_MEMORY": 83,
    "CONCURRENT_MANAGED_ACCESS": 89, "COMPUTE_PREEMPTION_SUPPORTED": 90,
    "CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM": 91, "COOPERATIVE_LAUNCH": 95, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 97,
    "HOST_REGISTER_SUPPORTED": 99, "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED": 102,
    "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED": 103, "MAX_BLOCKS_PER_MULTIPROCESSOR": 106,
    "RESERVED_SHARED_MEMORY_PER_BLOCK": 111, "CLUSTER_LAUNCH": 120,
}  # fmt: skip
"""CU_DEVICE_ATTRIBUTE_..., as cuda.h numbers them."""

_SAME_FOR_ALL: Mapping[str, int] = {
    "MAX_THREADS_PER_BLOCK": 1024, "MAX_BLOCK_DIM_X": 1024, "MAX_BLOCK_DIM_Y": 1024, "MAX_BLOCK_DIM_Z": 64,
    "MAX_GRID_DIM_X": 2**31 - 1, "MAX_GRID_DIM_Y": 65535, "MAX_GRID_DIM_Z": 65535,
    "MAX_SHARED_MEMORY_PER_BLOCK": 48 * 1024, "TOTAL_CONSTANT_MEMORY": 64 * 1024, "WARP_SIZE": 32,
    "MAX_PITCH": 2**31 - 1, "TEXTURE_ALIGNMENT": 512, "GPU_OVERLAP": 1, "CAN_MAP_HOST_MEMORY": 1,
    "MAXIMUM_TEXTURE1D_WIDTH": 131072, "SURFACE_ALIGNMENT": 512, "CONCURRENT_KERNELS": 1, "ASYNC_ENGINE_COUNT": 3,
    "UNIFIED_ADDRESSING": 1, "TEXTURE_PITCH_ALIGNMENT": 32, "STREAM_PRIORITIES_SUPPORTED": 1,
    "GLOBAL_L1_CACHE_SUPPORTED": 1, "LOCAL_L1_CACHE_SUPPORTED": 1, "MANAGED_MEMORY": 1, "CONCURRENT_MANAGED_ACCESS": 1,
    "COMPUTE_PREEMPTION_SUPPORTED": 1, "CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM": 1, "COOPERATIVE_LAUNCH": 1,
    "HOST_REGISTER_SUPPORTED": 1, "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED": 1,
    "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED": 1,
}  # fmt: skip

_MEMORY_CLOCK_KHZ = 2_000_000
"""Not known for each card; with the bus width that goes with it, it gives the known bandwidth."""
_REGISTERS_PER_BLOCK = 65536
_MAX_GPUS = 64


def attributes(device: Device) -> dict[str, int]:
    """CUDA attributes of `device` by name; all others are 0. Raises `UnsupportedError` for a GPU without CUDA."""
    major, minor = _capability(device)
    cores = 64 if (major, minor) in {(7, 0), (7, 5), (8, 0)} else 128
    khz = device.flops_per_s["float32"] / (2 * cores * device.sm_count) / 1e3
    bus_bits = device.memory_bytes_per_s * 8 / (2 * _MEMORY_CLOCK_KHZ * 1e3)
    return {
        **_SAME_FOR_ALL,
        "COMPUTE_CAPABILITY_MAJOR": major,
        "COMPUTE_CAPABILITY_MINOR": minor,
        "MULTIPROCESSOR_COUNT": device.sm_count,
        "L2_CACHE_SIZE": device.l2_bytes,
        "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": device.smem_per_sm_bytes,
        "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": device.smem_per_block_bytes,
        "RESERVED_SHARED_MEMORY_PER_BLOCK": 1024 if major >= 8 else 0,
        "MAX_REGISTERS_PER_MULTIPROCESSOR": device.registers_per_sm,
        "MAX_REGISTERS_PER_BLOCK": min(device.registers_per_sm, _REGISTERS_PER_BLOCK),
        "MAX_THREADS_PER_MULTIPROCESSOR": device.threads_per_sm,
        "MAX_BLOCKS_PER_MULTIPROCESSOR": device.blocks_per_sm,
        "CLOCK_RATE": round(khz),
        "MEMORY_CLOCK_RATE": _MEMORY_CLOCK_KHZ,
        "GLOBAL_MEMORY_BUS_WIDTH": round(bus_bits),
        "CLUSTER_LAUNCH": int(major >= 9),
    }


def cuda_name(device: Device) -> str:
    """What CUDA calls `device`; where its table does not tell, its name after the vendor's words.

    >>> from dataclasses import replace
    >>> from dnnmem.estimator.devices import find_device
    >>> cuda_name(replace(find_device("rtx-4090"), name="rtx-4080-super-16gb", cuda_name=""))
    'NVIDIA GeForce RTX 4080 SUPER 16GB'
    """
    if device.cuda_name:
        return device.cuda_name
    words = [_SPELLED.get(word, word.upper()) for word in device.name.split("-")]
    return " ".join(["NVIDIA", *(["GeForce"] if words[0] in {"RTX", "GTX"} and len(words[1]) == 4 else []), *words])


_SPELLED = {"pcie": "PCIe", "ada": "Ada", "ti": "Ti", "super": "SUPER"}


def _capability(device: Device) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)", device.compute_capability)
    if device.vendor != "nvidia" or not found:
        raise UnsupportedError(
            f"{device.name} is a GPU of {device.vendor}, and the virtual GPU is a CUDA one", hint=WITHOUT
        )
    return int(found[1]), int(found[2])


def kernel_version(device: Device, targets: Collection[int]) -> int:
    """Which of the compiled `targets` a kernel runs as on `device`: the newest that its hardware can run.

    CUB refuses a GPU whose kernels claim another target than one that it was compiled for: an RTX 4090 (8.9) runs code
    for 8.6. Where none fits, torch does not run on such a GPU at all, and the oldest target stands in.

    >>> from dnnmem.estimator.devices import find_device
    >>> [kernel_version(find_device(name), (75, 80, 86, 90)) for name in ("rtx-4090", "a100-80gb", "v100-16gb")]
    [86, 80, 75]
    """
    major, minor = _capability(device)
    own = 10 * major + minor
    fitting = [target for target in targets if target // 10 == major and target <= own]
    return max(fitting, default=min(targets, default=own))


def identity(device: Device, *, count: int = 1, targets: Collection[int] = ()) -> dict[str, str]:
    """The variables that make the stub libraries `count` GPUs of this model; the memory is what its driver offers.

    `targets`: what the kernels of torch are compiled for (`installed.kernel_targets`).
    """
    if not 1 <= count <= _MAX_GPUS:
        raise UnsupportedError(f"{count} GPUs in one process; the virtual GPU shows 1 to {_MAX_GPUS}")
    known = sorted((NUMBERS[name], value) for name, value in attributes(device).items() if name in NUMBERS)
    return {
        "DNNMEM_VGPU_NAME": cuda_name(device),
        "DNNMEM_VGPU_COUNT": str(count),
        "DNNMEM_VGPU_TOTAL_BYTES": str(device.usable_bytes),
        "DNNMEM_VGPU_CONTEXT_BYTES": str(device.context_bytes or 0),
        "DNNMEM_VGPU_NCCL": ",".join(map(str, astuple(way_bytes(device.link, device.compute_capability)))),
        "DNNMEM_VGPU_PEERS": str(int(device.link != "none")),
        "DNNMEM_VGPU_KERNEL_VERSION": str(kernel_version(device, targets)),
        "DNNMEM_VGPU_ATTRIBUTES": ",".join(f"{number}={value}" for number, value in known),
    }
