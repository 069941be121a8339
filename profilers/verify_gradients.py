"""The gradient error of a plan that loses something, measured by a child process on the CPU. Imports no torch.

Request + Plan  ->  python -m dnnmem.profilers.gradient_error REQUEST PLAN  ->  a share, or None
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import to_json
from dnnmem.profilers.children import end, start
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import QUIET

SECONDS = 120.0
"""Longest that is waited for it: a large model is slow on the CPU."""


def is_lossy(plan: Plan) -> bool:
    """True if gradients of the plan are right on average only."""
    return plan.compression.bits is not None or plan.compression.projection is not None


def measured_error(request: Request, plan: Plan, timeout_seconds: float = SECONDS) -> float | None:
    """Relative error of the gradients of one step, None where it cannot be had: no memory, no time, no CPU kernel."""
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        asked, planned = Path(name, "request.json"), Path(name, "plan.json")
        asked.write_text(request.to_json(), "utf-8")
        planned.write_text(json.dumps(to_json(plan)), "utf-8")
        command = [sys.executable, "-m", "dnnmem.profilers.gradient_error", str(asked), str(planned)]
        child = start(command, {**QUIET, **os.environ, "CUDA_VISIBLE_DEVICES": ""}, apart=True)
        try:
            said, _ = child.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(child)
    lines = said.decode("utf-8", "replace").splitlines()
    try:
        return float(json.loads(lines[-1])["gradient_error"])
    except (IndexError, KeyError, TypeError, ValueError):
        return None
