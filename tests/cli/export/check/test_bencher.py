"""Bencher's metric format, as its documentation states the schema."""

from __future__ import annotations

import json

import jsonschema

from dnnmem.cli.export.check.bencher import render
from tests.cli.export.check import findings

NUMBER = {"type": "number"}
METRIC = {
    "type": "object",
    "properties": {"value": NUMBER, "lower_value": NUMBER, "upper_value": NUMBER},
    "required": ["value"],
}
FORMAT = {
    "type": "object",
    "patternProperties": {".+": {"type": "object", "patternProperties": {".+": METRIC}}},
}
LONGEST = {"benchmark": 1024, "measure": 64}


def test_steps_are_benchmarks_with_a_measure_for_each_number():
    # WHEN
    data = json.loads(render([findings.grown(), findings.failed()]))
    # THEN
    jsonschema.validate(data, FORMAT)
    assert data == {
        "model.py | batch_size 8 | fake | no gpu | torch 2.14": {
            "peak-allocated": {"value": 110 * findings.MIB},
            "total": {"value": 110 * findings.MIB},
        }
    }


def test_names_are_no_longer_than_bencher_takes():
    # GIVEN
    step = findings.checked(None, findings.entry(target="m" * 3000))
    # WHEN
    data = json.loads(render([step]))
    # THEN
    assert all(0 < len(name) <= LONGEST["benchmark"] for name in data)
    assert all(len(name) <= LONGEST["measure"] for metrics in data.values() for name in metrics)
