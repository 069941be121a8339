"""A check in Bencher's metric format: bytes of each step, for a record over time.

{"model.py | batch_size 8 | ...": {"peak-allocated": {"value": 261063716}, ...}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from dnnmem.cli.check_run import Checked

_LONGEST = 1024
"""Letters of a benchmark's name that Bencher takes."""


def render(found: Sequence[Checked]) -> str:
    """The metrics of all steps that ran, a newline at the end."""
    metrics = {}
    for step in found:
        if step.verdict is not None:
            entry = step.verdict.entry
            values = {
                "peak-allocated": entry.allocated_bytes,
                "peak-reserved": entry.reserved_bytes,
                "total": entry.total_bytes,
                "step-seconds": entry.step_seconds,
            }
            metrics[entry.key.text[:_LONGEST]] = {name: {"value": v} for name, v in values.items() if v is not None}
    return json.dumps(metrics, indent=2, sort_keys=True) + "\n"
