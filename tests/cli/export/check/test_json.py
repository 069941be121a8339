"""The JSON of a check against its schema."""

from __future__ import annotations

import json

import jsonschema
import pytest

from dnnmem.cli.export.check.json import render
from tests.cli.export.check import findings


@pytest.fixture(name="schema", scope="module")
def _schema(request):
    path = request.config.rootpath / "src/dnnmem/schemas/check-1.schema.json"
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


@pytest.mark.parametrize(
    ("step", "passed"),
    [
        (findings.unchanged(), True),
        (findings.new(), True),
        (findings.improved(), True),
        (findings.grown(), False),
        (findings.grown(accepted=True), True),
        (findings.failed(), False),
        *((findings.grown(module=name), False) for name in findings.HOSTILE),
    ],
)
def test_every_outcome_has_the_shape_that_the_schema_says(step, passed, schema):
    # WHEN
    data = json.loads(render([step]))
    # THEN
    jsonschema.validate(data, schema)
    assert data["passed"] is passed


def test_blame_keeps_names_as_they_are():
    # GIVEN
    name = "a|b`<script>\n"
    # THEN
    assert json.loads(render([findings.grown(module=name)]))["steps"][0]["blame"] == [
        {
            "module": name, "modules": 1, "grown_bytes": 10 * findings.MIB,
            "kinds": {"activation": 10 * findings.MIB}, "since": "forward, aten.addmm.default, models/net.py:12",
        }
    ]  # fmt: skip


@pytest.mark.parametrize("lack", ["key", "now", "blame", "outcome"])
def test_the_schema_refuses_a_step_that_lacks_something(lack, schema):
    # GIVEN
    data = json.loads(render([findings.grown()]))
    del data["steps"][0][lack]
    # THEN
    with pytest.raises(jsonschema.ValidationError, match=lack):
        jsonschema.validate(data, schema)
