"""JUnit XML of a check."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from dnnmem.cli.export.check.junit import render
from tests.cli.export.check import findings


def test_counts_are_those_of_the_cases():
    # WHEN
    root = ET.fromstring(render([findings.unchanged(), findings.grown(), findings.failed(), findings.new()]))  # noqa: S314
    # THEN
    suite = root.find("testsuite")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "4", "failures": "1", "errors": "1",
    }  # fmt: skip
    assert len(suite.findall("testcase")) == 4
    assert len(suite.findall("testcase/failure")) == 1
    assert len(suite.findall("testcase/error")) == 1


def test_a_failure_tells_the_layers():
    # WHEN
    failure = ET.fromstring(render([findings.grown()])).find("testsuite/testcase/failure")  # noqa: S314
    # THEN
    assert failure.get("message") == "its peak grew by 10.0%, and 2.0% is allowed"
    assert failure.text == "blocks.0.fc +10.0 MiB: activation; forward, aten.addmm.default, models/net.py:12"


def test_what_is_accepted_does_not_fail():
    assert "<failure" not in render([findings.grown(accepted=True)])


@pytest.mark.parametrize("name", findings.HOSTILE)
def test_hostile_names_are_text(name):
    # WHEN
    root = ET.fromstring(render([findings.grown(module=name), findings.failed(name)]))  # noqa: S314
    # THEN
    assert {element.tag for element in root.iter()} == {
        "testsuites", "testsuite", "testcase", "failure", "error", "system-out",
    }  # fmt: skip
