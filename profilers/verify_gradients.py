"""The gradient error of a plan that loses something, measured by a child process on the CPU. Imports no torch.

Request + Plan  ->  python -m dnnmem.profilers.gradient_error REQUEST PLAN OUT  ->  a share, or None
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import to_json
from dnnmem.profilers.children import end, start
from dnnmem.profilers.request import Request

SECONDS = 120.0
"""Longest that is waited for it: a large model is slow on the CPU."""


def is_lossy(plan: Plan) -> bool:
    """True if gradients of the plan are right on average only."""
    return plan.compression.bits is not None or plan.compression.projection is not None


def measured_error(
    request: Request, plan: Plan, environment: Mapping[str, str], timeout_seconds: float = SECONDS
) -> float | None:
    """Relative error of the gradients of one step, None where it cannot be had: no memory, no time, no CPU kernel."""
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        asked, planned, found = (Path(name, file) for file in ("request.json", "plan.json", "found.json"))
        asked.write_text(request.to_json(), "utf-8")
        planned.write_text(json.dumps(to_json(plan)), "utf-8")
        command = [sys.executable, "-m", "dnnmem.profilers.gradient_error", *map(str, (asked, planned, found))]
        child = start(command, {**environment, "CUDA_VISIBLE_DEVICES": ""})
        try:
            child.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(child)
        return float(json.loads(found.read_text("utf-8"))["gradient_error"]) if found.exists() else None
