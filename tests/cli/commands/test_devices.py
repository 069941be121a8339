import json

import pytest

from dnnmem.cli.app import run
from dnnmem.estimator.cluster import load_nodes
from dnnmem.estimator.devices import load_devices


def test_every_gpu_and_every_node_has_its_line(capsys):
    assert run(["devices"]) == 0

    tables = capsys.readouterr().out.split("\n\n")
    names = [[line.split()[0] for line in table.splitlines()[1:]] for table in tables]
    assert names == [list(load_devices()), list(load_nodes())]


@pytest.mark.parametrize(
    ("columns", "gpus", "nodes"),
    [
        ("80", ["name", "usable", "context"], ["node", "GPUs", "of"]),
        ("60", ["name", "usable", "context"], ["node", "GPUs", "of"]),
        ("88", ["name", "usable", "context", "bandwidth", "bf16", "dense", "arch"], ["node", "GPUs", "of", "inside"]),
        (
            "110",
            ["name", "usable", "context", "bandwidth", "bf16", "dense", "arch"],
            ["node", "GPUs", "of", "inside", "network"],
        ),
    ],
)
def test_a_narrow_terminal_gets_what_matters(capsys, monkeypatch, columns, gpus, nodes):
    monkeypatch.setenv("COLUMNS", columns)

    run(["devices"])

    text = capsys.readouterr().out
    assert [table.splitlines()[0].split() for table in text.split("\n\n")] == [gpus, nodes]
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "…" not in text


@pytest.mark.parametrize("words", [["h100"], ["show", "h100-sxm-80gb"], ["show", "NVIDIA H100 80GB HBM3"]])
def test_one_gpu_is_shown_in_full_with_its_sources(capsys, words):
    assert run(["devices", *words]) == 0

    text = capsys.readouterr().out
    assert "h100-sxm-80gb" in text
    assert "context_source" in text


@pytest.mark.parametrize("words", [["dgx-h100"], ["show", "DGX H100"]])
def test_one_node_is_shown_in_full_with_its_sources(capsys, words):
    assert run(["devices", *words]) == 0

    text = capsys.readouterr().out
    assert "nvlink4-switch" in text
    assert "latency_source" in text


def test_a_file_of_ones_own_is_checked(capsys, tmp_path):
    path = tmp_path / "rack.toml"
    path.write_text('[rack]\ndevice = "t4"\ngpus = 4\nlink = "pcie3"\nlink_gb_s = 15.8\n', encoding="utf-8")

    assert run(["devices", str(path)]) == 2
    assert "[rack] lacks link_latency_us, source" in capsys.readouterr().err

    with path.open("a", encoding="utf-8") as file:
        file.write('link_latency_us = 1.0\nsource = "my own"\n')
    assert run(["devices", f"{path}:rack"]) == 0
    assert "my own" in capsys.readouterr().out


def test_devices_as_json_are_bytes(capsys):
    assert run(["devices", "--format", "json"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "dnnmem.devices/1"
    assert {gpu["name"]: gpu["usable_bytes"] for gpu in shown["devices"]} == {
        name: device.usable_bytes for name, device in load_devices().items()
    }
    assert {node["name"]: node["link_bytes_per_s"] for node in shown["nodes"]} == {
        name: node.link_bytes_per_s for name, node in load_nodes().items()
    }


def test_an_unknown_device_is_told_its_neighbours(capsys):
    assert run(["devices", "h1000"]) == 2

    text = capsys.readouterr().err
    assert "h1000 is not known; nearest:" in text
    assert "h100-sxm-80gb" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "devices show names nothing"),
        (["t4", "l4"], "devices shows one at a time, not t4, l4"),
        (["--format", "md"], "--format is 'md'; it must be one of table, json"),
    ],
)
def test_what_means_nothing_is_refused(capsys, words, message):
    assert run(["devices", *words]) == 2
    assert message in capsys.readouterr().err
