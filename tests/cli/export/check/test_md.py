"""Markdown of a check: what it says, and that no name of a module is anything but text."""

from __future__ import annotations

import re

import pytest

from dnnmem.cli.export.check.md import MARK, render
from tests.cli.export.check import findings

SPAN = re.compile(r"(?<!`)(`+) (.*?) \1(?!`)")


def test_the_first_line_is_the_mark_of_the_sticky_comment():
    # WHEN
    lines = render([findings.unchanged()]).splitlines()
    # THEN
    assert lines[0] == MARK
    assert lines[1] == "### dnnmem check: memory is as accepted"


def test_a_row_has_current_accepted_and_change():
    # WHEN
    text = render([findings.grown(), findings.failed()])
    # THEN
    assert "### dnnmem check: 2 of 2 steps fail" in text
    assert "| 110.0 MiB | 100.0 MiB | +10.0 % | 110.0 MiB |" in text
    assert "| ` blocks.0.fc ` | +10.0 MiB | ` activation; forward, aten.addmm.default, models/net.py:12 ` |" in text


@pytest.mark.parametrize("name", findings.HOSTILE)
def test_what_others_named_stands_in_code_and_nowhere_else(name):
    # WHEN
    text = render([findings.grown(module=name, since=f"forward, {name}"), findings.failed(name)])
    # THEN outside of code there is only what the format itself says
    outside = SPAN.sub("", text.removeprefix(MARK))
    assert set(re.findall("<[^>]*>", outside)) <= {"<details>", "<summary>", "</summary>", "</details>"}
    assert not re.search(r"[`\]\x1b\x00]|javascript|::|-->", outside)


@pytest.mark.parametrize("name", findings.HOSTILE)
def test_every_row_keeps_its_columns(name):
    # WHEN
    rows = [line for line in render([findings.grown(module=name), findings.failed(name)]).splitlines() if "|" in line]
    # THEN a bar after an odd number of backslashes is no border
    tables = [row for row in rows if row.startswith("|")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in tables} == {7, 4}
