"""The time model's parameters come from defaults, a GPU's own shares, its architecture and its family."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from dnnmem.estimator.devices import find_device, load_devices
from dnnmem.estimator.time_model import TimeModel, at_site, load, read_parameters


@pytest.mark.parametrize("name", sorted(load_devices()))
def test_every_gpu_has_a_whole_model(name: str) -> None:
    """GIVEN any packaged GPU WHEN its model is loaded THEN shares lie near 1 or below, and costs are short."""
    model = load(find_device(name))
    for field in fields(TimeModel):
        value = getattr(model, field.name)
        if field.name.endswith("_seconds"):
            assert 0 <= value < 0.1, field.name
        elif field.name in {"gemm", "conv", "stream", "eager", "norm", "softmax", "nvlink", "network"}:
            assert 0.1 < value < 1.2, field.name


def test_a_gpu_s_own_shares_go_before_the_defaults() -> None:
    """GIVEN a GPU with and without shares of its own WHEN loaded THEN its own count, else the fallback's."""
    device = find_device("a100-sxm-80gb")
    own = replace(device, efficiency={"gemm": 0.5, "stream": 0.6, "eager": 0.4, "flash": 0.2})
    unknown = load(replace(own, arch="unheard-of"))
    assert (unknown.stream, unknown.eager, unknown.gemm) == (0.6, 0.4, 0.5)
    assert 0.1 < load(replace(device, efficiency={}, arch="unheard-of")).gemm < 1


def test_an_architecture_goes_before_a_gpu_s_own_share() -> None:
    """GIVEN a GPU whose architecture's attention was measured WHEN loaded THEN that is taken, not its book value."""
    device = find_device("a100-sxm-80gb")
    assert load(device).attention_forward != device.efficiency["flash"]


def test_a_family_goes_before_its_architecture() -> None:
    """GIVEN a GeForce and a server card of one architecture WHEN loaded THEN their clocks tell them apart."""
    assert load(find_device("rtx-3090")).conv > load(find_device("a100-sxm-80gb")).conv


def test_keys_say_their_unit() -> None:
    """GIVEN keys with units WHEN read THEN fields have seconds, watts and shares."""
    found = read_parameters({"launch_us": 3, "iteration_ms": 2, "gemm_share": 0.5, "reference_w": 400, "l2_boost": 2})
    assert found == {
        "launch_seconds": pytest.approx(3e-6),
        "iteration_seconds": pytest.approx(2e-3),
        "gemm": 0.5,
        "reference_watts": 400,
        "l2_boost": 2,
    }


def test_a_site_has_its_own_host_and_attention():
    device = find_device("a100-sxm-80gb")
    plain, site = load(device), load(device, site="vtrain_single")
    assert site.host_seconds > 2 * plain.host_seconds
    assert site.gemm == plain.gemm
    assert load(device, site="nowhere") == plain
    slower = at_site(plain, {"attention": 0.5, "host_seconds": 1e-4})
    assert (slower.attention_backward, slower.host_seconds) == (plain.attention_backward / 2, 1e-4)
