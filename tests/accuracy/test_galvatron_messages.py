"""Collectives against the 66 messages that Hetu-Galvatron measured on a node of 8 A100 (1 MiB to 1 GiB)."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.collectives import Group, collective_seconds
from dnnmem.estimator.time_model import load

NODE = find_cluster("dgx-a100-40")
MODEL = replace(load(NODE.device), nvlink=0.75, nvlink_latency_seconds=65e-6)
"""What that site reached, and what each of its calls cost besides."""


def _errors(kind: str) -> list[float]:
    path = Path(__file__).parent / "data" / "galvatron_messages.csv"
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == kind]
    assert len(rows) == 33
    predicted = [
        collective_seconds(kind, int(row["mib"]) * 2**20, Group(int(row["ranks"]), int(row["ranks"])), NODE, MODEL)
        for row in rows
    ]
    return [abs(p / float(row["seconds"]) - 1) for p, row in zip(predicted, rows, strict=True)]


@pytest.mark.parametrize(
    ("kind", "average", "middle", "worst"), [("all_reduce", 0.05, 0.04, 0.19), ("all_to_all", 0.12, 0.07, 0.38)]
)
def test_messages_take_what_was_measured(kind, average, middle, worst):
    errors = _errors(kind)
    assert (mean(errors) < average, median(errors) < middle, max(errors) < worst) == (True, True, True)
