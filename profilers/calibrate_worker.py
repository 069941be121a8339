"""The child process of `dnnmem calibrate`: imports torch, runs the cases and writes what they took.

    argv      ORDER.json FOLDER    ->  FOLDER/measured.json  or  FOLDER/error.json
    stdout    "done all", a line for each case, for the parent's progress

Under torchrun each rank runs one; all take part in the collectives, and the first rank's times count.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dnnmem.estimator.errors import DnnmemError, ModelError, UnsupportedError
from dnnmem.profilers.calibrate_cases import Make, all_cases
from dnnmem.profilers.calibrate_clock import Clock, CpuClock, CudaClock, seconds_of, seconds_once
from dnnmem.profilers.calibrate_keys import curve_point
from dnnmem.profilers.calibrate_links import collectives, copies
from dnnmem.profilers.calibrate_machine import best_rates, describe, fault_rate, keep_memory
from dnnmem.profilers.calibrate_step import costs_of_an_op

Points = dict[str, list[tuple[float, float]]]
Say = Callable[[int, int], None]
COLD_BYTES = 64 * 2**20
"""Most that is written before each call on a CPU to empty its caches."""
_CLASSES = {
    "add": "stream", "native_layer_norm": "norm", "_softmax": "softmax", "sum": "reduction", "embedding": "index",
    "stack": "eager",
}  # fmt: skip
"""Operators whose curve stands for their class where an operator has none of its own."""


def main(argv: list[str]) -> int:
    """Serve one order; returns the exit code, 0 if the measurements are written."""
    folder = Path(argv[1])
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        order = json.loads(Path(argv[0]).read_text())
        found = measure(order, lambda done, count: print(done, count, file=progress))
        (folder / "measured.json").write_text(json.dumps(found))
    except DnnmemError as error:
        return _fail(folder, error)
    except Exception as error:  # noqa: BLE001 - the parent must hear of everything
        return _fail(folder, ModelError(f"measuring stopped: {type(error).__name__}: {error}"))
    return 0


def _fail(folder: Path, error: DnnmemError) -> int:
    told = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    (folder / "error.json").write_text(json.dumps(told))
    return error.exit_code


def measure(order: dict[str, Any], say: Say) -> dict[str, Any]:
    """Run what `order` asks for: `device`, `rehearse`, `ranks` and `quick`, which keeps the small cases only."""
    device, rehearse = order["device"], order["rehearse"]
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(f"no CUDA device here (torch {torch.__version__})", hint="use --device cpu")
    threads = torch.get_num_threads()
    clock: Clock = (
        CudaClock()
        if device == "cuda"
        else CpuClock(threads, cold_bytes=min(describe(device)["cache_bytes"], COLD_BYTES))
    )
    time: Callable[[Callable[[], object]], float] = seconds_once if rehearse else lambda run: seconds_of(run, clock)
    found: dict[str, Any] = {"machine": describe(device)}
    if device == "cpu":
        found["fault_seconds_per_byte"] = fault_rate()
        keep_memory()
    curves = _curves(list(_cases(device, quick=rehearse or order["quick"])), time, say)
    found |= best_rates(curves)
    found |= costs_of_an_op(device, rehearse=rehearse)
    found["curves"] = {name: sorted(points) for name, points in curves.items()}
    found["copies"] = copies(device, rehearse=rehearse)
    if order["ranks"] > 1:
        found["collectives"] = collectives(device, rehearse=rehearse)
    return found


def _cases(device: str, *, quick: bool) -> chain[Make]:
    limits = {"most_flops": 1.2e9, "most_bytes": 6.5e7} if device == "cpu" else {"most_flops": 4e12, "most_bytes": 2e9}
    if quick:
        limits = {"most_flops": 1e7, "most_bytes": 1e6}
    types = [torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16]
    return chain.from_iterable(all_cases(device, dtype, **limits) for dtype in types)


def _curves(cases: list[Make], time: Callable[[Callable[[], object]], float], say: Say) -> Points:
    points: Points = defaultdict(list)
    for done, make in enumerate(cases):
        say(done, len(cases))
        run = make()
        name, size, many = curve_point(run)
        seconds = time(run) / many
        points[name].append((size, seconds))
        if name in _CLASSES:
            points[_CLASSES[name]].append((size, seconds))
    return points


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
