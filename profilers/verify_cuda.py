"""A plan really run on the GPUs of this machine: torchrun starts a process a rank, and each says what it needed.

Request + Plan  ->  torchrun --nproc-per-node N -m dnnmem.profilers.planned REQUEST PLAN FOLDER  ->  Verified

The rank that reserved most counts; seconds are those of the slowest one. Imports no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import to_json
from dnnmem.estimator.report import Verified
from dnnmem.profilers.children import end, follow, start
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import LAST_LINES, QUIET


def verify_cuda(
    request: Request,
    plan: Plan,
    *,
    timeout_seconds: float | None = None,
    on_output: Callable[[str], None] = lambda _: None,
) -> Verified:
    """Apply `plan` to the target of `request` and make its steps on as many real GPUs as the plan has ranks.

    What a run dies of is in the result. `on_output` gets each line that the ranks print.
    """
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(request.to_json(), "utf-8")
        (folder / "plan.json").write_text(json.dumps(to_json(plan)), "utf-8")
        said, code = _run(plan.mesh.world_size, folder, timeout_seconds, on_output)
        told = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("rank*.json"))]
    return verified_of(told, plan.mesh.world_size, code, said)


def verified_of(told: list[dict[str, Any]], ranks: int, code: int | None, said: str) -> Verified:
    """What came of a run: `told` by its ranks, the exit code (None: it took too long) and its last lines."""
    failed = next((some for some in told if some["outcome"] != "ran"), None)
    if failed is not None:
        return Verified(device="cuda", outcome=failed["outcome"], message=f"rank {failed['rank']}: {failed['message']}")
    if code is None:
        message = f"the run made no end in time; its last lines:\n{said}"
        return Verified(device="cuda", outcome="timed_out", message=message)
    if len(told) < ranks:
        return Verified(device="cuda", outcome="failed", message=f"{ranks - len(told)} of {ranks} ranks died:\n{said}")
    worst = max(told, key=lambda some: int(some["reserved_bytes"]))
    return Verified(
        device="cuda", outcome="ran", peak_allocated_bytes=worst["allocated_bytes"],
        peak_reserved_bytes=worst["reserved_bytes"], step_seconds=max(some["step_seconds"] for some in told),
    )  # fmt: skip


def _run(
    ranks: int, folder: Path, timeout_seconds: float | None, on_output: Callable[[str], None]
) -> tuple[str, int | None]:
    """The last lines and the exit code of torchrun."""
    last: deque[str] = deque(maxlen=LAST_LINES)

    def heard(line: str) -> None:
        last.append(line)
        on_output(line)

    files = [str(folder / "request.json"), str(folder / "plan.json"), str(folder)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    child = start([sys.executable, *launcher, "dnnmem.profilers.planned", *files], {**QUIET, **os.environ})
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    thread = follow(child.stdout, heard)
    code: int | None = None
    try:
        code = child.wait(timeout_seconds)
        thread.join(timeout=2)
    except subprocess.TimeoutExpired:
        pass
    finally:
        end(child)
    return "\n".join(last), code
