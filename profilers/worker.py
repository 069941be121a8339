"""The child process that imports torch, runs the user's code and writes what it found.

    argv      REQUEST.json FOLDER, once or more    ->  each FOLDER/step.trace.json.gz  or  FOLDER/error.json
    stdout    one line for each step done, for the parent's progress
    stderr    whatever the user's code prints

torch can abort, and a model can exhaust memory: here that ends a child, and the parent turns it into a message.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.errors import DnnmemError, InternalError, ModelError, UnsupportedError
from dnnmem.estimator.passes.precision import computes_in
from dnnmem.estimator.plan import Plan, Precision
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.estimator.trace_file import save_trace
from dnnmem.estimator.work import COMPUTE
from dnnmem.profilers.request import Request

if TYPE_CHECKING:
    from dnnmem.profilers.few_blocks import Kept
    from dnnmem.profilers.step import Target

TRACE_FILE = "step.trace.json.gz"
ERROR_FILE = "error.json"

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def main(argv: list[str]) -> int:
    """Serve the requests in order; returns the first exit code that is not 0, which says that a trace is written."""
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    pairs = zip(argv[::2], argv[1::2], strict=True)
    codes = [_serve(Path(request), Path(folder), progress) for request, folder in pairs]
    return next(filter(None, codes), 0)


def _import_torch() -> None:
    """Load torch with the current folder out of sight: a `cuda.py` there is no package that torch asks for."""
    paths = [*sys.path]
    sys.path[:] = [path for path in paths if path not in ("", str(Path.cwd()))]
    import torch  # noqa: F401

    sys.path[:] = paths


def _serve(request_path: Path, folder: Path, progress: TextIO) -> int:
    """Serve one request; returns its exit code."""
    try:
        _import_torch()
        request = Request.from_json(request_path.read_text())
        trace, measurement = profile(request, lambda done: print(done, file=progress))
        save_trace(trace, measurement, folder / TRACE_FILE)
    except DnnmemError as error:
        _write_error(folder, error)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the parent must hear of everything
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno} in {last.name}"
        _write_error(folder, InternalError(f"{type(error).__name__}: {error}", hint=f"it happened at {where}"))
        return InternalError.exit_code
    return 0


def profile(request: Request, on_step: Callable[[int], None]) -> tuple[Trace, Measurement]:
    """Build and run what `request` names, on the device it names; raises a `DnnmemError` for whatever goes wrong."""
    from dnnmem.profilers.devices import choose_device, run_on
    from dnnmem.profilers.few_blocks import few_blocks, marked
    from dnnmem.profilers.target import resolve

    with collector_paused():  # which would go through all that is imported, again and again
        device = choose_device(request.device)
        _seed(request.seed)
        target = resolve(request)
    if device == "fake":  # elsewhere it may hold memory that is measured
        gc.freeze()
    kept: list[Kept] = []
    if request.batch_divisor > 1:
        target = target.rescale(max(int(target.batch["batch_size"]) // request.batch_divisor, 1), request.seq_len)
    if request.blocks is not None:
        target, kept = few_blocks(target, request.blocks)
    if request.compute is not None:
        target = _computing_in(target, request.compute)
    origin = Origin(target=target.name, device=device, gpu=request.gpu, versions=_versions(), notes=tuple(target.notes))
    try:
        trace, measurement = run_on(device, target, request, origin, on_step)
        trace = marked(trace, kept[0]) if kept else trace
        _check_types(trace, request.compute)
    except DnnmemError:
        raise
    except Exception as error:
        raise _user_error(error, target.user_files) from error
    versions = _versions() | ({COMPUTE: request.compute} if request.compute else {})
    return replace(trace, origin=replace(trace.origin, versions=versions)), measurement


def _computing_in(target: Target, compute: str) -> Target:
    """`target`, its model and optimizer made to compute in other types, as `dnnmem.apply` does it."""
    from dnnmem.profilers.apply.target import applied_target

    return applied_target(target, Plan(precision=Precision(compute=compute)))


def _check_types(trace: Trace, asked: str | None) -> None:
    """Raise `UnsupportedError` if the model's own code chooses others than were asked for."""
    found = computes_in(trace)
    if asked is not None and found not in {asked, "float32"}:
        raise UnsupportedError(
            f"precision.compute is {asked}, but the model itself computes in {found}",
            hint="take autocast, or the type, out of the model's code",
        )


def _user_error(error: Exception, user_files: tuple[str, ...]) -> DnnmemError:
    """What a person should hear of an exception that the step raised."""
    from dnnmem.profilers.targets.frames import device_hint, trim_traceback

    text = trim_traceback(error, user_files)
    if isinstance(error, MemoryError) or any(mark in str(error) for mark in _OUT_OF_MEMORY):
        return ModelError(
            f"the step ran out of memory\n{text}", hint="give a smaller --batch, or --device fake: it needs none"
        )
    if isinstance(error, NotImplementedError) and "FakeTensor" in str(error):
        return UnsupportedError(f"an operator of this step cannot run without data\n{text}", hint="use --device cpu")
    return ModelError(f"the training step failed\n{text}", hint=device_hint(str(error)))


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _versions() -> dict[str, str]:
    """Versions of what decides the step; libraries count if they are loaded."""
    from dnnmem import __version__

    found = {"dnnmem": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "torchvision", "timm", "transformers"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "?"))
    return found


def _write_error(folder: Path, error: DnnmemError) -> None:
    text = json.dumps({"type": type(error).__name__, "message": error.message, "hint": error.hint})
    partial = folder / f"{ERROR_FILE}.tmp"
    partial.write_text(text)
    partial.replace(folder / ERROR_FILE)


def _leave(code: int) -> NoReturn:
    """End as a process does, but for taking every module apart, which takes torch a third of a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an exit does
    atexit._run_exitfuncs()  # what the user's code has registered
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
