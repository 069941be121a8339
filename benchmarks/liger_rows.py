"""How close is the time model to operators timed on real GPUs? The eager programs of Liger-Kernel's published table.

    python benchmarks/liger_rows.py FILE.csv [--kernel NAME] [--rows] [--ops]

FILE.csv has the columns of Liger-Kernel's benchmark/data/all_benchmark_data.csv; rows of its own kernels are left out.
Each program is recorded on the fake GPU of its row and priced; nothing is fitted here. A time was taken between two
events after the cache was overwritten, so the host starts ahead by that long: what counts is the later of both. Between
repetitions a GPU is idle, so products reach what benchmarks of products do (`time_model_priors.toml`); in training,
hours on end, they reach a tenth less.
"""

# ruff: noqa: ANN401  (programs of many classes)

from __future__ import annotations

import argparse
import collections
import csv
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnmem.estimator.device import Device
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.roofline import host_seconds, op_seconds
from dnnmem.estimator.time_model import TimeModel, load, read_parameters
from dnnmem.estimator.trace import Origin, Phase, Trace
from dnnmem.estimator.work import work_of
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.step import Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.liger_programs import PROGRAMS

PRIORS = Path(__file__).with_name("time_model_priors.toml")
FLUSH_BYTES = 256 * 2**20
"""What the timer writes before each repetition."""


def step(model: Any, mode: str) -> None:
    """The timed region, with what is outside of it in modules of other names."""
    given = (model.prepare(),) if hasattr(model, "prepare") else ()
    out = model(*given)
    if mode == "forward":
        return
    outs = out if isinstance(out, tuple) else (out,)
    if hasattr(model, "loss"):
        model.loss(out).backward()
    elif outs[0].dim() == 0:
        out.backward()
    else:
        torch.autograd.backward(outs, [torch.randn_like(y) for y in outs])
    for name in () if mode in model.keeps else ("x", "x2"):
        if hasattr(model, name):
            getattr(model, name).grad = None


def record(kernel: str, x: int, config: dict[str, Any], gpu: Device, mode: str) -> Trace:
    """The step of one program."""
    target = Target(
        name=kernel,
        make_model=lambda: PROGRAMS[kernel](x, config),
        make_batch=lambda: torch.zeros(1),
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        train_step=lambda model, _batch, _optimizer: step(model, mode),
        batch={},
        rescale=lambda *_: target,
    )
    origin = Origin(target=kernel, device="fake", gpu=gpu.name)
    return profile_fake(target, steps=2, origin=origin, on_step=lambda _: None, gpu=gpu)[0]


def selected(trace: Trace, program: Any, mode: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Ops inside the timed region."""
    keep = []
    for op in trace.ops:
        inside = not (hasattr(program, "prepare") and op.phase is Phase.FORWARD and "softmax" in op.name)
        drawn = "randn_like" in op.name or "normal" in op.name
        if drawn and not program.draws:
            inside = False
        if mode == "backward" and not program.includes_forward and (op.phase is Phase.FORWARD or drawn):
            inside = False
        keep.append(inside)
    return np.array(keep, dtype=bool)


def timed(trace: Trace, keep: Any, device: Device, model: TimeModel, *, ahead: bool = True) -> float:
    """Seconds between the two events; the host is `ahead` while the cache is overwritten."""
    work = work_of(trace)
    seconds, host = op_seconds(work, device, model)[keep], host_seconds(work, model)[keep]
    issued = np.cumsum(host) - ahead * FLUSH_BYTES / (device.memory_bytes_per_s * model.stream)
    end = 0.0
    for at, length in zip(issued, seconds, strict=True):
        end = max(end, at) + length
    return float(end)


def rested(device: Device) -> TimeModel:
    """The rates of a GPU that is not at work all the time."""
    table = tomllib.loads(PRIORS.read_text("utf-8")).get(device.arch, {})
    products = read_parameters(table).get("gemm") if not device.name.startswith("rtx") else None
    return replace(load(device), gemm=products) if products else load(device)


def rows_of(file: str, kernels: set[str]) -> list[dict[str, Any]]:
    """The rows of eager PyTorch that can be recorded."""
    with Path(file).open(encoding="utf-8") as text:
        found = [
            {**row, "config": json.loads(row["extra_benchmark_config_str"])}
            for row in csv.DictReader(text)
            if row["metric_name"] == "speed"
            and row["kernel_provider"] in {"huggingface", "torch"}
            and row["kernel_name"] in kernels
        ]
    for row in found:
        dtype = row["config"].get("dtype")
        if dtype:
            row["config"]["dtype"] = getattr(torch, dtype.removeprefix("torch."))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--kernel", action="append")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--ops", action="store_true")
    given = parser.parse_args()
    errors: dict[tuple[str, str, str], list[float]] = collections.defaultdict(list)
    for row in rows_of(given.file, set(given.kernel or PROGRAMS)):
        kernel, mode, device = row["kernel_name"], row["kernel_operation_mode"], find_device(row["gpu_name"])
        x, program = int(float(row["x_value"])), PROGRAMS[kernel]
        trace = record(kernel, x, row["config"], device, mode)
        keep, model = selected(trace, program, mode), rested(device)
        ahead = mode == "backward" or not program.waits
        predicted, measured = 1e3 * timed(trace, keep, device, model, ahead=ahead), float(row["y_value_50"])
        errors[kernel, device.name, mode].append(predicted / measured - 1)
        if given.rows:
            sizes = f"{x:7} {measured:9.3f} {predicted:9.3f} {predicted / measured - 1:+.0%}"
            print(f"{kernel:28} {mode:9} {device.name:16} {sizes}")
        if given.ops:
            for op, seconds, kept in zip(trace.ops, op_seconds(work_of(trace), device, model), keep, strict=True):
                cost = f"{1e3 * seconds:.4f} ms {op.moved_bytes / 1e6:.1f} MB"
                print(f"    {'*' if kept else ' '} {op.phase.value:8} {op.name:44} {cost}")
    print(f"{'kernel':28} {'gpu':16} {'mode':9} rows  median |error|  first  last")
    for (kernel, gpu, mode), found in sorted(errors.items()):
        middle = statistics.median(map(abs, found))
        print(f"{kernel:28} {gpu:16} {mode:9} {len(found):4}  {middle:14.1%}  {found[0]:+.0%}  {found[-1]:+.0%}")


if __name__ == "__main__":
    main()
