"""What the rules ask of a GPU."""

from __future__ import annotations

import pytest

from dnnmem.estimator.devices import find_device, load_devices
from dnnmem.profilers.rules.gpu import compute_capability, gpu_of, torch_version


@pytest.mark.parametrize(
    ("name", "workspace"), [("h100-sxm-80gb", 33_554_432), ("a100-sxm-40gb", 8_519_680), ("mi300x", 134_217_728)]
)
def test_cublas_keeps_what_torch_gives_it(name, workspace):
    assert gpu_of(find_device(name)).workspace_bytes == workspace


def test_every_gpu_can_be_asked_for():
    for device in load_devices().values():
        gpu = gpu_of(device)
        assert gpu.setup.capability == compute_capability(device) >= (5, 0)
        assert gpu.setup.cudnn > 0
        assert gpu.threads.sm_count > 0


def test_the_version_is_three_numbers():
    assert len(torch_version()) == 3
    assert torch_version() >= (2, 5, 0)
