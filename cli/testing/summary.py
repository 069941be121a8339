"""What pytest's last lines say of memory: the largest peaks, what was accepted, what was not compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dnnmem.cli.pytest_plugin import baseline_path
from dnnmem.cli.testing.judge import ACCEPTED, NOTE, PEAK
from dnnmem.estimator.units import format_bytes

TOP = 10
"""Peaks that are listed."""


def write_summary(reporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write to pytest's terminal."""
    told = list(_properties(reporter))
    peaks = sorted(
        ((value, node + name.removeprefix(PEAK)) for node, name, value in told if name.startswith(PEAK)), reverse=True
    )
    accepted = sum(value for _, name, value in told if name == ACCEPTED)
    notes = sorted({value for _, name, value in told if name == NOTE})
    if not peaks:
        return
    reporter.section("memory (dnnmem)")
    if config.getoption("--dnnmem"):
        for value, name in peaks[:TOP]:
            reporter.line(f"{format_bytes(value):>12}  {name}")
        if len(peaks) > TOP:
            reporter.line(f"and {len(peaks) - TOP} more")
    if accepted:
        reporter.line(f"{accepted} peaks accepted in {baseline_path(config)}")
    for note in notes:
        reporter.line(note)
    if any(note.startswith("nothing is accepted") for note in notes):
        reporter.line("accept them: --dnnmem-update")


def _properties(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, str, Any]]:
    """Test, name and value of every property."""
    seen: set[tuple[str, str]] = set()
    for reports in reporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if (report.nodeid, f"{name}={value}") not in seen and str(name).startswith("dnnmem_"):
                    seen.add((report.nodeid, f"{name}={value}"))
                    yield report.nodeid, str(name), value
