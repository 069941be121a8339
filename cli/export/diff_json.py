"""Two steps compared, as JSON, `dnnmem.diff/1`. Bytes are integers, what is not known is null; keys may be added."""

from __future__ import annotations

import json
from typing import Any

from dnnmem.estimator.diff import Change, Difference
from dnnmem.estimator.profile import Profile

SCHEMA = "dnnmem.diff/1"


def to_json(found: Difference) -> str:
    """The comparison as indented JSON, a newline at its end."""
    data = {
        "schema": SCHEMA,
        "before": _side(found.before),
        "after": _side(found.after),
        "grown_bytes": found.grown_bytes,
        "parts": [_change(change) for change in found.parts],
        "modules": [_change(change) for change in found.modules],
    }
    return json.dumps(data, indent=2) + "\n"


def _side(profile: Profile) -> dict[str, Any]:
    return {
        "target": profile.target,
        "device": profile.device,
        "gpu": profile.gpu,
        "versions": dict(profile.versions),
        "batch": dict(profile.batch),
        "total_bytes": profile.total_bytes,
        "allocated_bytes": profile.peak.allocated_bytes,
        "reserved_bytes": profile.peak.reserved_bytes,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "module": change.module,
        "kind": change.kind,
        "before_bytes": change.before_bytes,
        "after_bytes": change.after_bytes,
        "grown_bytes": change.grown_bytes,
        "since": change.since,
    }
