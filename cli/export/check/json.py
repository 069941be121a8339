"""A check as JSON, `dnnmem.check/1`. Bytes are integers, what is not known is null; keys may be added."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dnnmem.cli.check_run import Checked
from dnnmem.estimator.baseline import Entry, blame

SCHEMA = "dnnmem.check/1"


def render(found: Sequence[Checked]) -> str:
    """The result as indented JSON, a newline at its end."""
    failed = any(step.fails for step in found)
    return (
        json.dumps({"schema": SCHEMA, "passed": not failed, "steps": [_step(step) for step in found]}, indent=2) + "\n"
    )


def _step(step: Checked) -> dict[str, Any]:
    limits = {
        "max_increase": step.limits.max_increase,
        "budget_bytes": step.limits.budget_bytes,
        "max_slowdown": step.limits.max_slowdown,
    }
    verdict = step.verdict
    if verdict is None:
        message = step.error.message if step.error else ""
        return {"target": step.name, "outcome": "failed", "message": message, "limits": limits}
    return {
        "target": step.name,
        "key": verdict.entry.key.text,
        "outcome": verdict.outcome,
        "reasons": list(verdict.reasons),
        "over_budget": verdict.over_budget,
        "updated": step.accepted,
        "increase": verdict.increase,
        "limits": limits,
        "now": _bytes(verdict.entry),
        "accepted": _bytes(verdict.before) if verdict.before else None,
        "blame": [
            {
                "module": line.label,
                "modules": line.count,
                "grown_bytes": line.grown_bytes,
                "kinds": dict(line.kinds),
                "since": line.since,
            }
            for line in blame(verdict)
        ],
        "not_compared": [key.text for key in verdict.others],
    }


def _bytes(entry: Entry) -> dict[str, Any]:
    return {
        "allocated_bytes": entry.allocated_bytes,
        "reserved_bytes": entry.reserved_bytes,
        "total_bytes": entry.total_bytes,
        "parts": dict(entry.parts),
        "step_seconds": entry.step_seconds,
    }
