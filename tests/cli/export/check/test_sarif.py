"""SARIF of a check.

The schema below is no copy of the standard's: it states, strictly, the part of SARIF 2.1.0 that dnnmem writes (sections
3.13, 3.14, 3.18-3.19, 3.27-3.30, 3.49). `benchmarks/check_evidence.py sarif FILE` validates against the whole one.
"""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from dnnmem.cli.export.check.sarif import render
from dnnmem.estimator.baseline import Limits
from tests.cli.export.check import findings


def _object(required, **properties):
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


TEXT = {"type": "string", "minLength": 1}
URI = {"type": "string", "pattern": r"^[^\s\\<>\"`{}|^]+$"}
PLACE = _object(
    "physicalLocation",
    physicalLocation=_object(
        "artifactLocation region",
        artifactLocation=_object("uri", uri=URI),
        region=_object("startLine", startLine={"type": "integer", "minimum": 1}),
    ),
)
RESULT = _object(
    "ruleId level message",
    ruleId={"enum": ["memory-regression", "over-budget", "step-failed"]},
    level={"enum": ["none", "note", "warning", "error"]},
    message=_object("text", text=TEXT),
    locations={"type": "array", "items": PLACE, "minItems": 1},
    partialFingerprints={"type": "object", "additionalProperties": TEXT},
)
RULE = _object("id shortDescription", id=TEXT, shortDescription=_object("text", text=TEXT))
RUN = _object(
    "tool results",
    tool=_object(
        "driver",
        driver=_object(
            "name version rules", name=TEXT, version=TEXT, rules={"type": "array", "items": RULE, "uniqueItems": True}
        ),
    ),
    results={"type": "array", "items": RESULT},
)
LOG = _object(
    "$schema version runs",
    version={"const": "2.1.0"},
    runs={"type": "array", "items": RUN, "minItems": 1},
    **{"$schema": URI},
)


def _results(*steps):
    log = json.loads(render(steps))
    jsonschema.validate(log, LOG)
    return log["runs"][0]["results"]


def test_a_finding_stands_at_the_line_of_the_layer_that_grew():
    # WHEN
    (result,) = _results(findings.grown())
    # THEN
    assert result["ruleId"] == "memory-regression"
    assert result["message"]["text"].startswith("blocks.0.fc +10.0 MiB: activation; forward")
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "models/net.py"},
        "region": {"startLine": 12},
    }


def test_places_are_told_from_the_root_of_the_repository(tmp_path, monkeypatch):
    # GIVEN a check that is started in a folder of it
    (tmp_path / ".git").mkdir()
    (tmp_path / "train jobs").mkdir()
    monkeypatch.chdir(tmp_path / "train jobs")
    # WHEN
    (result,) = _results(findings.grown())
    # THEN
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "train%20jobs/models/net.py"


def test_steps_that_pass_have_no_findings():
    assert _results(findings.unchanged(), findings.new(), findings.improved(), findings.grown(accepted=True)) == []


def test_a_budget_and_a_step_that_failed_point_at_the_target():
    # GIVEN
    over = findings.checked(None, findings.entry(), limits=Limits(budget_bytes=1))
    # WHEN
    found = _results(over, findings.failed())
    # THEN
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in found]
    assert [result["ruleId"] for result in found] == ["over-budget", "step-failed"]
    assert places == ["model.py", "bad.py"]


def test_equal_findings_have_equal_fingerprints_and_others_do_not():
    # WHEN
    one, again, other = (_results(findings.grown(module=name))[0] for name in ("a", "a", "b"))
    # THEN
    assert one["partialFingerprints"] == again["partialFingerprints"] != other["partialFingerprints"]


@pytest.mark.parametrize("name", findings.HOSTILE)
def test_hostile_names_are_text(name):
    # WHEN
    (result,) = _results(findings.grown(module=name, since=f"forward, {name}"))
    # THEN no bracket is bare, which a viewer would read as a link
    assert not re.search(r"(?<!\\)(?:\\\\)*[\[\]]", result["message"]["text"])
