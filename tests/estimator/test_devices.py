from __future__ import annotations

from importlib import resources

import pytest

from dnnmem.estimator.devices import find_device, load_devices
from dnnmem.estimator.errors import UsageError


def _packaged(name: str = "rtx-3060-12gb") -> str:
    """The table of one packaged device, as text."""
    text = (resources.files("dnnmem.estimator") / "specs" / "nvidia.toml").read_text("utf-8")
    return f"[{name}]" + text.split(f"[{name}]")[1].split("\n[")[0]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("h100-sxm-80gb", "h100-sxm-80gb"),
        ("h100", "h100-sxm-80gb"),
        ("H100-80GB", "h100-sxm-80gb"),
        ("a100-80gb", "a100-sxm-80gb"),
        ("a100-40gb", "a100-sxm-40gb"),
        ("rtx-3060", "rtx-3060-12gb"),
        ("rtx 4060", "rtx-4060-8gb"),
        ("4090", "rtx-4090-24gb"),
        ("v100-32gb", "v100-sxm2-32gb"),
        ("b200", "b200-sxm"),
        ("MI300X", "mi300x"),
    ],
)
def test_a_device_has_the_names_that_people_use(name, device):
    assert find_device(name).name == device


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA GeForce RTX 3060", "rtx-3060-12gb"),
        ("Tesla V100-SXM2-16GB", "v100-sxm2-16gb"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_the_name_that_torch_reports_is_understood(name, device):
    assert find_device(name).name == device


@pytest.mark.parametrize(
    ("name", "readings"),
    [
        ("a100", ["a100-sxm-40gb", "a100-sxm-80gb", "a100-pcie-40gb", "a100-pcie-80gb"]),
        ("v100", ["v100-sxm2-16gb", "v100-sxm2-32gb"]),
    ],
)
def test_a_name_of_several_cards_is_refused_with_the_list_of_them(name, readings):
    with pytest.raises(UsageError) as caught:
        find_device(name)
    assert str(caught.value) == f"--gpu {name} can be {', '.join(readings)}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "near"), [("h10", "h100-sxm-80gb"), ("rtx-409", "rtx-4090-24gb"), ("mi300", "mi300x")]
)
def test_an_unknown_name_brings_the_nearest_ones(name, near):
    with pytest.raises(UsageError, match=r"is not known; nearest: ") as caught:
        find_device(name)
    assert near in str(caught.value)


def test_a_name_near_to_nothing_brings_all_of_them():
    with pytest.raises(UsageError, match=r"^--gpu abacus is not known$") as caught:
        find_device("abacus")
    assert all(name in caught.value.hint for name in load_devices())


def test_every_device_is_whole_and_consistent():
    devices = load_devices()
    assert len(devices) == 26
    for name, device in devices.items():
        assert device.name == name
        assert device.usable_bytes < device.memory_bytes
        assert (device.context_bytes is None) == (not device.context_source)
        assert (device.context_bytes is None) == (device.vendor != "nvidia")
        if device.context_bytes and device.context_range_bytes:
            low, high = device.context_range_bytes
            assert 0 < low <= device.context_bytes <= high < 2**30
        assert device.flops_per_s["float32"] > 1e12
        assert device.flops_per_s.get("float8", 1e30) >= device.flops_per_s["float16"]
        assert device.smem_per_block_bytes <= device.smem_per_sm_bytes
        assert device.confidence in ("sure", "likely")
        assert device.source
        assert set(device.efficiency) == {"gemm", "stream", "eager", "flash"}
        assert all(0 < share <= 1 for share in device.efficiency.values())
        assert device.gemm_kind in ("fit", "book")


def test_no_alias_is_the_name_of_another_device():
    devices = load_devices()
    assert not {alias for device in devices.values() for alias in device.aliases} & devices.keys()


def test_units_are_those_of_the_keys():
    device = find_device("a100-sxm-80gb")
    assert device.flops_per_s["bfloat16"] == 312e12
    assert device.memory_bytes_per_s == 2039e9
    assert (device.memory_bytes, device.l2_bytes, device.smem_per_block_bytes) == (80 * 2**30, 40 * 2**20, 163 * 2**10)
    assert (device.link_bytes_per_s, device.pcie_bytes_per_s) == (300e9, 31.5e9)
    assert device.context_bytes == 512 * 2**20


def test_what_is_unknown_is_none_and_what_hardware_lacks_is_absent():
    assert find_device("h100-sxm-96gb").price_usd_per_h is None
    assert find_device("mi300x").context_bytes is None
    assert "bfloat16" not in find_device("v100-32gb").flops_per_s


def test_amd_devices_are_marked():
    assert {d.name for d in load_devices().values() if d.vendor == "amd"} == {"mi250x-gcd", "mi300x"}


def test_a_file_of_ones_own_is_a_device(tmp_path):
    # GIVEN a file with one device, that leaves out what may be left out
    optional = ("aliases", "context", "price", "efficiency", "note", "confidence")
    lines = [line for line in _packaged().splitlines() if not line.startswith(optional)]
    path = tmp_path / "mygpu.toml"
    path.write_text("\n".join(lines).replace("rtx-3060-12gb", "my-gpu"), encoding="utf-8")
    # WHEN it is named by its path, with and without the device's name
    device = find_device(str(path))
    assert find_device(f"{path}:my-gpu") == device
    # THEN it has the facts, and says nothing about the rest
    assert (device.name, device.sm_count, device.confidence) == ("my-gpu", 28, "likely")
    assert (device.price_usd_per_h, dict(device.efficiency)) == (None, {})
    assert device.context_source.startswith("modelled")


def test_of_several_devices_in_a_file_one_is_named(tmp_path):
    path = tmp_path / "rack.toml"
    path.write_text(_packaged("t4") + "\n" + _packaged("l4"), encoding="utf-8")
    assert find_device(f"{path}:l4").name == "l4"
    with pytest.raises(UsageError, match=r"rack\.toml has 2 devices; it holds t4, l4"):
        find_device(str(path))
    with pytest.raises(UsageError, match=r"rack\.toml has no device 'x'; it holds t4, l4"):
        find_device(f"{path}:x")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sm_count = 28\n", "", r"\[rtx-3060-12gb\] lacks sm_count$"),
        ("sm_count = 28", "sm_count = 28\nsms = 28", r"has sms, which means nothing"),
        ("sm_count = 28", "sm_count = -28", r"sm_count = -28; it must be a whole number of 1 or more"),
        ("sm_count = 28", "sm_count = 28.5", r"sm_count = 28\.5; it must be a whole number"),
        ("sm_count = 28", "sm_count = true", r"sm_count = True; it must be a whole number"),
        ("memory_gb_s = 360.0", "memory_gb_s = -1", r"memory_gb_s = -1; it must be a number of 0 or more"),
        ("memory_gb_s = 360.0", "memory_gb_s = nan", r"memory_gb_s = nan; it must be a number"),
        ("memory_gb_s = 360.0", 'memory_gb_s = "fast"', r"memory_gb_s = 'fast'; it must be a number"),
        ("memory_gib = 12.0", "memory_gib = 0", r"memory_gib = 0; it must be above 0"),
        ("usable_gib = 11.65", "usable_gib = 13", r"usable_gib is above memory_gib"),
        ('arch = "ampere"', "arch = 8", r"arch = 8; it must be a text"),
        ('aliases = ["', 'aliases = [3, "', r"aliases = \[3, .*; it must be a list of texts"),
        ("price_usd_per_h = [", "price_usd_per_h = [9.0, ", r"price_usd_per_h = .*; it must be \[low, high\]"),
        ("price_usd_per_h = [0.05, 0.2]", "price_usd_per_h = [2, 1]", r"low not above high"),
        ("gemm = ", "gem = ", r"efficiency = .*; it must be a table of gemm, stream, eager, flash"),
        ("[rtx-3060-12gb]", "[rtx-3060-12gb", r"is not TOML"),
        ("[rtx-3060-12gb]", "name = 1\n[rtx-3060-12gb]", r"name is no table"),
    ],
)
def test_a_faulty_file_is_one_clear_error(tmp_path, old, new, message):
    path = tmp_path / "mygpu.toml"
    text = _packaged()
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        find_device(str(path))
    assert str(caught.value).startswith(str(path))


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
        find_device(str(tmp_path / "none.toml"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.toml is not TOML"):
        find_device(str(binary))


def test_an_empty_file_holds_none(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"has 0 devices; it holds none"):
        find_device(str(path))
