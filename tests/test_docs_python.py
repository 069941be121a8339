"""The examples of docs/python.md are true."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest


def test_its_examples_are_true(root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # GIVEN the page  WHEN its examples run at the top of the checkout
    monkeypatch.chdir(root)
    found = doctest.testfile(str(root / "docs" / "python.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    # THEN all of them hold, and none prints a word of its own
    assert found.attempted > 15
    assert found.failed == 0
    said = capfd.readouterr()
    # torch's profiler has its own word where torch was imported before anybody could tell it not to
    assert [said.out, *(line for line in said.err.splitlines() if not line.startswith("USDT:"))] == [""]
