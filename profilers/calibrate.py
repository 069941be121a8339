"""Measures a machine for the time model, in a child process: an abort or a hang of it becomes a message.

this process    order -> child (torch, CUDA) -> measured.json -> calibrate_spec -> text of a file
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dnnmem.estimator import errors
from dnnmem.estimator.errors import DnnmemError, ModelError
from dnnmem.profilers.children import end, follow, start

DEVICES = ("auto", "cpu", "cuda", "virtual")
"""What can be measured, or rehearsed."""
_TIMEOUT_SECONDS = 1800.0
_LAST_LINES = 12


def measure(
    device: str,
    environment: Mapping[str, str],
    *,
    ranks: int = 1,
    quick: bool = False,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _count: None,
) -> dict[str, Any]:
    """What the child measured on `device`, one of `DEVICES`; on `virtual` each case runs once and times are all 1.

    Args: `environment` of the child; `ranks` that torchrun started; `quick` keeps the small cases only; `on_progress`
    hears of cases done and to do, from another thread.

    Raises `UnsupportedError` for a device that is not there, `ModelError` if the child died or hung.
    """
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        folder = Path(name)
        if device == "virtual":
            from dnnmem.profilers.virtual_gpu.launch import prepare

            environment = prepare(None, environment, cache=cache, error_file=folder / "error.json").environment
        elif device == "auto":
            device = "cuda" if _has_gpu() else "cpu"
        order = {
            "device": "cpu" if device == "cpu" else "cuda",
            "rehearse": device == "virtual",
            "ranks": ranks,
            "quick": quick,
        }
        (folder / "order.json").write_text(json.dumps(order))
        code, last = _run(folder, environment, on_progress)
        if code == 0:
            found: dict[str, Any] = json.loads((folder / "measured.json").read_text())
            return {**found, "device": device}
        raise _error(folder, code, last)


def _has_gpu() -> bool:
    from dnnmem.profilers import monitor

    return monitor.read().used_bytes is not None


def _run(
    folder: Path, environment: Mapping[str, str], on_progress: Callable[[int, int], None]
) -> tuple[int | None, str]:
    """Exit code, None after the time-out, and the last lines of the child."""
    command = [sys.executable, "-m", "dnnmem.profilers.calibrate_worker", str(folder / "order.json"), str(folder)]
    child = start(command, environment, apart=True)
    assert child.stdout is not None and child.stderr is not None  # noqa: S101, PT018 - pipes were asked for
    last: deque[str] = deque(maxlen=_LAST_LINES)

    def told(line: str) -> None:
        done, count = map(int, line.split())
        on_progress(done, count)

    threads = [follow(child.stdout, told), follow(child.stderr, last.append)]
    code: int | None = None
    try:
        code = child.wait(_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        end(child)
        for thread in threads:
            thread.join(timeout=2)
    return code, "\n".join(last)


def _error(folder: Path, code: int | None, last: str) -> DnnmemError:
    if code is None:
        return ModelError(f"measuring did not end within {_TIMEOUT_SECONDS:g} s", hint="is the machine busy?")
    told = folder / "error.json"
    if told.exists():
        said = json.loads(told.read_text())
        error: DnnmemError = getattr(errors, said["type"], ModelError)(said["message"], hint=said["hint"])
        return error
    return ModelError(f"the process that measures ended with exit code {code}; its last lines:\n{last or 'none'}")
