"""What a virtual GPU says of itself, for every GPU of the table."""

from __future__ import annotations

import pytest

from dnnmem.estimator.devices import find_device, load_devices
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu.identity import NUMBERS, attributes, cuda_name, identity, kernel_version

NVIDIA = sorted(name for name, device in load_devices().items() if device.vendor == "nvidia")


@pytest.mark.parametrize("name", NVIDIA)
def test_attributes_go_together(name):
    # GIVEN any GPU of the table  WHEN
    device = load_devices()[name]
    it = attributes(device)
    # THEN each limit fits into the one above it, and all have a number
    assert set(it) <= set(NUMBERS)
    assert it["MAX_SHARED_MEMORY_PER_BLOCK"] <= it["MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"]
    assert (
        it["MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"] + it["RESERVED_SHARED_MEMORY_PER_BLOCK"]
        <= it["MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"]
    )
    assert it["MAX_THREADS_PER_BLOCK"] <= it["MAX_THREADS_PER_MULTIPROCESSOR"]
    assert it["MAX_REGISTERS_PER_BLOCK"] <= it["MAX_REGISTERS_PER_MULTIPROCESSOR"]
    assert 500e3 < it["CLOCK_RATE"] < 4e6
    bandwidth = 2 * it["MEMORY_CLOCK_RATE"] * 1e3 * it["GLOBAL_MEMORY_BUS_WIDTH"] / 8
    assert bandwidth == pytest.approx(device.memory_bytes_per_s, rel=0.01)


@pytest.mark.parametrize("name", NVIDIA)
def test_the_name_that_cuda_gives_leads_back(name):
    # GIVEN  WHEN the GPU is looked up by what torch will call it
    found = find_device(cuda_name(load_devices()[name]))
    # THEN it is found, or the card of the same name that everybody has
    assert found.name == {"h100-sxm-96gb-hbm2e-500w": "h100-sxm-80gb"}.get(name, name)


def test_names_are_those_that_real_cards_have():
    # GIVEN the cards that programs and tables of tuned kernels know by name  WHEN  THEN
    names = {name: device.cuda_name for name, device in load_devices().items()}
    assert names["h100-sxm-80gb"] == "NVIDIA H100 80GB HBM3"
    assert names["a100-sxm-80gb"] == "NVIDIA A100-SXM4-80GB"
    assert names["a100-pcie-80gb"] == "NVIDIA A100 80GB PCIe"
    assert names["t4"] == "Tesla T4"
    assert all(names[name] for name in NVIDIA)


def test_numbers_of_attributes_are_distinct():
    assert len(set(NUMBERS.values())) == len(NUMBERS)


def test_a_kernel_runs_as_the_newest_target_that_fits():
    # GIVEN kernels for Ampere and Hopper  WHEN  THEN an Ada GPU runs Ampere's, and an unsupported one the oldest
    targets = (80, 86, 90)
    assert kernel_version(find_device("rtx-4090"), targets) == 86
    assert kernel_version(find_device("h100"), targets) == 90
    assert kernel_version(find_device("t4"), targets) == 80
    assert kernel_version(find_device("t4"), ()) == 75


def test_a_gpu_without_cuda_is_refused():
    with pytest.raises(UnsupportedError, match="mi300x is a GPU of amd"):
        identity(find_device("mi300x"))


@pytest.mark.parametrize("count", [0, 65])
def test_the_number_of_gpus_has_bounds(count):
    with pytest.raises(UnsupportedError, match=f"{count} GPUs"):
        identity(find_device("h100"), count=count)


def test_memory_is_what_the_driver_offers():
    # GIVEN a GPU whose context is known  WHEN
    device = find_device("rtx-4090")
    told = identity(device)
    # THEN
    assert int(told["DNNMEM_VGPU_TOTAL_BYTES"]) == device.usable_bytes < device.memory_bytes
    assert int(told["DNNMEM_VGPU_CONTEXT_BYTES"]) == device.context_bytes > 0
