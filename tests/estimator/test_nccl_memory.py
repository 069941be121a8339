"""NCCL's memory: near what was published, and never below what its sources say."""

import pytest

from dnnmem.estimator.devices import load_devices
from dnnmem.estimator.nccl_memory import nccl_range, way_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("model", "published_mib"),
    [
        (way_bytes("nvlink4", "9.0").tree, 1520 - 1183),
        (7 * (way_bytes("nvlink4", "9.0").send + way_bytes("nvlink4", "9.0").receive), 3.28e9 / MIB),
        (way_bytes("nvlink3", "8.0").ring + way_bytes("nvlink3", "8.0").tree, 688e6 / MIB),
        (way_bytes("nvlink3", "8.0").ring, 544e6 / MIB),
    ],
    ids=["barrier", "all-to-all", "all-reduce of 4", "all-reduce of 2"],
)
def test_what_was_published_lies_in_the_interval(model, published_mib):
    low, high = nccl_range(model)
    assert low <= published_mib * MIB <= high


@pytest.mark.parametrize("device", load_devices().values(), ids=lambda device: device.name)
def test_every_gpu_has_its_ways(device):
    ways = way_bytes(device.link, device.compute_capability)
    assert 0 < ways.send < ways.receive
    assert (ways.nvls > 0) == (device.arch in ("hopper", "blackwell") and device.link.startswith("nvlink"))
