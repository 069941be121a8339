"""Annotations for GitHub's runner: one line a command, and no name that becomes one."""

from __future__ import annotations

import re

import pytest

from dnnmem.cli.export.check.github import render
from tests.cli.export.check import findings


def test_an_error_stands_at_the_line_of_the_layer_that_grew():
    # WHEN
    line = render([findings.grown()])
    # THEN
    assert line == (
        "::error file=models/net.py,line=12,title=dnnmem check::model.py fails: its peak grew by 10.0%25, and 2.0%25 "
        "is allowed%0Ablocks.0.fc +10.0 MiB: activation; forward, aten.addmm.default, models/net.py:12\n"
    )


def test_levels_follow_the_outcome():
    # WHEN
    steps = [findings.new(), findings.improved(), findings.failed(), findings.grown(accepted=True)]
    # THEN
    assert [re.match(r"::(\w+)", line)[1] for line in render(steps).splitlines()] == [
        "notice", "notice", "error", "notice",
    ]  # fmt: skip
    assert render([findings.unchanged()]) == ""


def test_a_place_with_signs_of_the_format_is_escaped():
    # WHEN
    line = render([findings.grown(since="forward, a:b%.py:3")])
    # THEN
    assert line.startswith("::error file=a%3Ab%25.py,line=3,title=")


@pytest.mark.parametrize("name", findings.HOSTILE)
def test_a_hostile_name_begins_no_line(name):
    # WHEN
    text = render([findings.grown(module=name, since=f"forward, {name}"), findings.failed(name)])
    # THEN
    assert len(text.splitlines()) == 2
    assert text.count("\n") == 2
    assert all(line.startswith("::error ") for line in text.splitlines())
