"""The kept rows of many GPUs: what passes say, and what ranks needed, at real sizes."""

from __future__ import annotations

import csv

import pytest

from tests.conftest import ROOT

ROWS = list(csv.DictReader((ROOT / "tests" / "accuracy" / "data" / "sharding_rows.csv").open(encoding="utf-8")))


@pytest.mark.parametrize("what", ["allocated", "reserved"])
def test_ranks_needed_what_passes_say(what):
    # GIVEN rows of which something ran  THEN each is within 2 %
    ran = [row for row in ROWS if row[f"ran_{what}"]]
    off = {
        (row["model"], row["settings"], row["rank"]): int(row[f"predicted_{what}"]) / int(row[f"ran_{what}"]) - 1
        for row in ran
    }
    assert not {key: miss for key, miss in off.items() if abs(miss) > 0.02}
    assert len({(row["model"], row["settings"]) for row in ran if row["name"].isdigit()}) >= 20


def test_what_did_not_run_was_said_not_to_fit():
    # GIVEN rows that ran out of memory  THEN more was predicted than a GPU of its kind has
    sizes = {"h100-sxm-80gb": 80e9, "h200-sxm-141gb": 141e9}
    for row in ROWS:
        if not row["ran_allocated"]:
            assert row["message"] == "out of memory"
            assert int(row["predicted_reserved"]) > 0.95 * sizes[row["gpu"]]
