"""What new memory costs is its first write, and what the system needs to take it back."""

from __future__ import annotations

import itertools

import pytest

from dnnmem.profilers import calibrate_machine


def test_a_page_costs_its_fault_and_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN clocks by which each write and each return take a second THEN what is left of a page is its return."""
    seconds = itertools.count()
    monkeypatch.setattr(calibrate_machine, "_FAULT_BYTES", 4096)
    monkeypatch.setattr(calibrate_machine.time, "process_time", lambda: float(next(seconds)))
    assert calibrate_machine.fault_rate() == 1 / 4096
