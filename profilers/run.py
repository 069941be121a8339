"""Runs a request in a child process and brings back its trace; an abort, a kill or a hang of it becomes a message.

Imports no torch. The child's own process group is ended with it, whatever workers the user's code has started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from dnnmem.estimator import errors
from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import DnnmemError, InternalError, ModelError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.trace_file import load_trace
from dnnmem.profilers.children import end, follow, start
from dnnmem.profilers.place import place
from dnnmem.profilers.request import Request
from dnnmem.profilers.worker import ERROR_FILE, TRACE_FILE

QUIET = {"KINETO_LOG_LEVEL": "6", "TORCH_CPP_LOG_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
"""Environment of the child, under the person's own."""
LAST_LINES = 12
"""Lines of its output that are told when it dies."""


def run(
    request: Request,
    *,
    timeout: float | None = None,
    gpu: Device | None = None,
    cache: Path | None = None,
    on_output: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Trace, Measurement]:
    """Run `request` in a child process.

    Args: `timeout` in seconds; `gpu` is the one that a virtual GPU shows, if it is not packaged under `request.gpu`;
    `cache` keeps what the virtual GPU is built of; `on_output` gets each line that the user's code prints,
    `on_progress` the number of each step done (from another thread).

    Raises the child's `DnnmemError`, or `ModelError` if it died or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        folder = Path(name)
        launch = place(
            request, {**QUIET, **os.environ}, gpu=gpu, cache=cache, error_file=folder / ERROR_FILE, say=on_output
        )
        (folder / "request.json").write_text(launch.request.to_json())
        last: deque[str] = deque(maxlen=LAST_LINES)

        def heard(line: str) -> None:
            last.append(line)
            on_output(line)

        code = _run_child(folder, launch.environment, timeout, heard, lambda line: on_progress(int(line)))
        if code == 0 and (folder / TRACE_FILE).exists():
            return load_trace(folder / TRACE_FILE)
        raise child_error(folder, code, timeout, list(last))


def _run_child(
    folder: Path,
    environment: Mapping[str, str],
    timeout: float | None,
    on_output: Callable[[str], None],
    on_progress: Callable[[str], None],
) -> int | None:
    """The child's exit code; None if it was ended for taking too long."""
    command = [sys.executable, "-m", "dnnmem.profilers.worker", str(folder / "request.json"), str(folder)]
    child = start(command, environment, apart=True)
    assert child.stdout is not None and child.stderr is not None  # noqa: S101, PT018 - pipes were asked for
    threads = [follow(child.stdout, on_progress), follow(child.stderr, on_output)]
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(child)
        for thread in threads:
            thread.join(timeout=2)


def child_error(folder: Path, code: int | None, timeout: float | None, last: list[str]) -> DnnmemError:
    """What a child that wrote no trace to `folder` has to say, by its own words or by how it ended."""
    if code is None:
        return ModelError(
            f"the step did not finish within {timeout:g} s", hint="give a longer --timeout, or a smaller --batch"
        )
    told = folder / ERROR_FILE
    if told.exists():
        said = json.loads(told.read_text())
        kind = getattr(errors, said["type"], None) or _by_code(code)
        error: DnnmemError = DnnmemError.__new__(kind)
        DnnmemError.__init__(error, said["message"], hint=said["hint"])
        return error
    shown = "\n".join(last) or "it printed nothing"
    if code == -signal.SIGKILL:
        return ModelError(
            f"the process that ran the step was killed, most likely for lack of memory; its last lines:\n{shown}",
            hint="give a smaller --batch, or --device fake: it needs no memory for tensors",
        )
    if code < 0:
        name = signal.Signals(-code).name
        return ModelError(f"the process that ran the step died with {name}; its last lines:\n{shown}")
    return ModelError(f"the model's code ended the process with exit code {code}; its last lines:\n{shown}")


def _by_code(code: int) -> type[DnnmemError]:
    kinds = (errors.RegressionError, errors.UsageError, errors.ModelError, errors.UnsupportedError)
    return next((k for k in kinds if k.exit_code == code), InternalError)
