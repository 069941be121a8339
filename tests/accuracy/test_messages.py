"""Collectives against published measurements: 66 of Hetu-Galvatron on a node of 8 A100, 15 of nccl-tests elsewhere.

On each site three numbers are its own: the shares of link and network that it reached, and what a call costs besides.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.collectives import Group, collective_seconds
from dnnmem.estimator.time_model import TimeModel, load

NODE = find_cluster("dgx-a100-40")
GALVATRON = replace(load(NODE.device), nvlink=0.75, nvlink_latency_seconds=65e-6)
"""A call there was timed from Python."""

NCCL = replace(
    load(NODE.device),
    nvlink=0.75,
    pcie=0.80,
    network=0.92,
    nvlink_latency_seconds=20e-6,
    pcie_latency_seconds=20e-6,
    network_latency_seconds=40e-6,
)


def _rows(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent / "data" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _error(cluster: str, kind: str, nbytes: float, group: Group, model: TimeModel, seconds: str) -> float:
    return abs(collective_seconds(kind, nbytes, group, find_cluster(cluster), model) / float(seconds) - 1)


@pytest.mark.parametrize(
    ("kind", "average", "middle", "worst"), [("all_reduce", 0.05, 0.04, 0.19), ("all_to_all", 0.12, 0.07, 0.38)]
)
def test_messages_inside_a_node_take_what_was_measured(kind, average, middle, worst):
    # GIVEN 2, 4 and 8 ranks, 1 MiB to 1 GiB
    rows = [row for row in _rows("galvatron_messages.csv") if row["kind"] == kind]
    errors = [
        _error(NODE.name, kind, int(row["mib"]) * 2**20, Group(n, n), GALVATRON, row["seconds"])
        for row in rows
        for n in [int(row["ranks"])]
    ]
    assert len(errors) == 33
    assert (mean(errors) < average, median(errors) < middle, max(errors) < worst) == (True, True, True)


@pytest.mark.parametrize(
    ("cluster", "rows", "worst"),
    [
        ("4090:4", 3, 0.06),
        ("dgx-h100", 1, 0.09),
        ("dgx-h100:2", 6, 0.27),
        ("dgx-h100:4", 1, 0.06),
        ("p4d", 1, 0.08),
        ("p4d:2", 1, 0.31),  # EFA and NCCL of 2022 reached two thirds of the network's rate
        ("p4d:3", 1, 0.31),
        ("p4d:4", 1, 0.31),
    ],
)
def test_messages_of_other_nodes_and_over_networks_take_what_was_measured(cluster, rows, worst):
    errors = [
        _error(
            cluster,
            row["kind"],
            float(row["bytes"]),
            Group(int(row["ranks"]), int(row["per_node"])),
            NCCL,
            row["seconds"],
        )
        for row in _rows("nccl_messages.csv")
        if row["cluster"] == cluster
    ]
    assert len(errors) == rows
    assert max(errors) < worst


def test_the_packaged_rates_are_those_of_nccl_tests_on_a_node():
    # GIVEN nccl-tests on 2 to 8 A100, 1 MiB to 1 GiB, as vTrain publishes it (VIA-Research/vTrain, trace/a100)
    rows, model = _rows("nccl_all_reduce_a100.csv"), load(NODE.device)
    errors = [
        _error(NODE.name, "all_reduce", int(row["bytes"]), Group(n, n), model, row["seconds"])
        for row in rows
        for n in [int(row["gpus"])]
    ]
    # THEN the time model's own share and latency give them
    assert len(errors) == 77
    assert (mean(errors) < 0.08, median(errors) < 0.07, max(errors) < 0.4) == (True, True, True)
