from __future__ import annotations

from importlib import resources

import pytest

from dnnmem.estimator.cluster import find_cluster, find_node, load_nodes, node_cluster, node_device, usual_node
from dnnmem.estimator.devices import find_device, load_devices
from dnnmem.estimator.errors import UsageError


def _packaged(name: str = "dgx-h100") -> str:
    """The table of one packaged node, as text."""
    text = (resources.files("dnnmem.estimator") / "specs" / "nodes.toml").read_text("utf-8")
    return f"[{name}]" + text.split(f"[{name}]")[1].split("\n[")[0]


@pytest.mark.parametrize(
    ("name", "gpus", "per_node", "inside"),
    [
        ("h100-sxm-80gb", 1, 1, "nvlink4-switch"),
        ("h100:2", 2, 2, "nvlink4-switch"),
        ("h100-sxm-80gb:8", 8, 8, "nvlink4-switch"),
        ("NVIDIA H100 80GB HBM3:16", 16, 8, "nvlink4-switch"),
        ("dgx-h100", 8, 8, "nvlink4-switch"),
        ("DGX H100:4", 32, 8, "nvlink4-switch"),
        ("selene:64", 512, 8, "nvlink3-switch"),
        ("p5:2", 16, 8, "nvlink4-switch"),
        ("4090:8", 8, 8, "pcie4"),
        ("2x3090", 2, 2, "pcie4"),
        ("a100-80gb:3", 3, 3, "nvlink3-switch"),
    ],
)
def test_a_cluster_is_named_by_its_gpus_or_its_nodes(name, gpus, per_node, inside):
    cluster = find_cluster(name)
    assert (cluster.name, cluster.gpus, cluster.gpus_per_node, cluster.inside.name) == (name, gpus, per_node, inside)
    assert cluster.nodes * cluster.gpus_per_node == cluster.gpus
    assert (cluster.across is None) == (cluster.nodes == 1)


def test_a_gpu_has_its_share_of_the_cards_of_its_node():
    # GIVEN p4d: 4 cards of 100 Gbit/s for 8 GPUs
    cluster = find_cluster("p4d:2")
    # THEN a GPU has half a card: 6.25 GB/s
    assert (cluster.across.name, cluster.across.bytes_per_s, cluster.nics_per_node) == ("efa", 6.25e9, 4)


def test_a_gpu_without_a_usual_node_has_its_own_links():
    t4, bridged = find_cluster("t4:4"), find_cluster("a40:2")
    assert (t4.inside.name, t4.inside.bytes_per_s) == ("pcie3", 15.8e9)
    assert (bridged.inside.name, bridged.inside.bytes_per_s) == ("nvlink3-bridge", 56.25e9)
    assert t4.inside.source.startswith("assumed")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dgx-h10:2", r"^--cluster dgx-h10:2 is not known; nearest: dgx-h100"),
        ("abacus", r"^--cluster abacus is not known$"),
        ("a100:8", r"^--cluster a100 can be a100-sxm-40gb, a100-sxm-80gb, "),
        ("h100:0", r"^--cluster h100:0 has no GPU; write how many: h100:8$"),
        ("h100:12", r"^h100:12 is 12 GPUs; above 8 they fill whole nodes of 8$"),
        ("t4:16", r"^--cluster t4:16 is 2 nodes, but a node of t4 has no network$"),
        ("8x4090:2", r"^--cluster 8x4090:2 is 2 nodes, but 8x4090 has no network$"),
        ("none.toml:rack:2", r"^none\.toml cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_one_clear_error(name, message):
    with pytest.raises(UsageError, match=message):
        find_cluster(name)


def test_every_node_is_whole_and_consistent():
    nodes = load_nodes()
    for name, node in nodes.items():
        assert node.name == name
        assert node.device in load_devices()
        assert node.source
        assert node.latency_source
        assert node.confidence in ("sure", "likely")
        assert (node.price_usd_per_h is None) == (not node.price_source)
        assert "2026" in node.price_source or not node.price_source
        assert 0 < node.link_latency_seconds < 1e-5
        device = find_device(node.device)
        if node.link.startswith("pcie"):
            assert node.link_bytes_per_s <= device.pcie_bytes_per_s
        else:
            assert node.link_bytes_per_s == device.link_bytes_per_s
        assert node_cluster(node, node_device(node)).gpus == node.gpus


def test_a_gpu_has_at_most_one_usual_node():
    usual = [node.device for node in load_nodes().values() if node.usual]
    assert len(usual) == len(set(usual))
    assert usual_node(find_device("h100")).name == "dgx-h100"


def test_no_name_of_a_node_means_two_things():
    names = [alias for node in load_nodes().values() for alias in (node.name, *node.aliases)]
    gpus = {alias for gpu in load_devices().values() for alias in (gpu.name, *gpu.aliases)}
    assert len(names) == len(set(names))
    assert not set(names) & gpus


def test_a_file_of_ones_own_is_a_cluster(tmp_path):
    path = tmp_path / "racks.toml"
    path.write_text(_packaged() + _packaged("8x4090").replace("8x4090", "shed"), encoding="utf-8")
    assert find_cluster(f"{path}:dgx-h100:4").gpus == 32
    assert find_cluster(f"{path}:shed").inside.name == "pcie4"
    assert find_node(f"{path}:shed").device == "rtx-4090-24gb"
    with pytest.raises(UsageError, match=r"racks\.toml has 2 nodes; it holds dgx-h100, shed"):
        find_cluster(str(path))
    with pytest.raises(UsageError, match=r"racks\.toml has no node 'x'; it holds dgx-h100, shed"):
        find_cluster(f"{path}:x:2")


def test_a_file_with_a_gpu_of_ones_own_is_a_cluster_of_it(tmp_path):
    text = (resources.files("dnnmem.estimator") / "specs" / "nvidia.toml").read_text("utf-8")
    path = tmp_path / "gpu.toml"
    path.write_text("[my-gpu]" + text.split("[t4]")[1].split("\n[")[0], encoding="utf-8")
    cluster = find_cluster(f"{path}:2")
    assert (cluster.device.name, cluster.gpus, cluster.inside.name) == ("my-gpu", 2, "pcie3")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpus = 8\n", "", r"\[dgx-h100\] lacks gpus$"),
        ("gpus = 8", "gpus = 0", r"gpus = 0; it must be a whole number of 1 or more"),
        ("nics = 8", "nics = -1", r"nics = -1; it must be a whole number of 0 or more"),
        ("nics = 8", "nics = 8\nports = 8", r"has ports, which means nothing"),
        ("link_gb_s = 450.0", "link_gb_s = 0", r"link_gb_s = 0; it must be above 0"),
        ("link_gb_s = 450.0", 'link_gb_s = "450 GB/s"', r"link_gb_s = '450 GB/s'; it must be a number"),
        ("link_latency_us = 0.6", "link_latency_us = nan", r"link_latency_us = nan; it must be a number"),
        ("usual = true", "usual = 1", r"usual = 1; it must be true or false"),
        ("nics = 8", "nics = 0", r"network = 'infiniband', nics = 0, nic_gbit_s = 400; a node has all three"),
        (
            'device = "h100-sxm-80gb"',
            'device = "h1000"',
            r"^\[dgx-h100\] device = 'h1000': h1000 is not known; nearest",
        ),
        ("[dgx-h100]", "[dgx-h100", r"is not TOML"),
        ("[dgx-h100]", "name = 1\n[dgx-h100]", r"name is no table"),
    ],
)
def test_a_faulty_file_is_one_clear_error(tmp_path, old, new, message):
    path = tmp_path / "rack.toml"
    text = _packaged()
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        find_cluster(str(path))


def test_an_empty_file_holds_no_node(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"has 0 nodes; it holds none"):
        find_cluster(str(path))
