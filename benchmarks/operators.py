"""Which of torch's operators and modules the virtual GPU runs: forward and backward of each, on torch's own samples.

    python benchmarks/operators.py [--only PATTERN] [--samples N] [--gpu NAME]

The samples are those of torch's tests (`op_db`, `module_db`), in float32 where there is one. One process imports torch
and forks workers; a worker that dies names the operator it died in, and another one goes on behind it. What fails is
printed by reason; the exit status is 1 if anything died, or met a call that the virtual GPU does not have.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

Sample = Any
"""An OpInfo or ModuleInfo of torch's tests, which have no types."""
IN_CHILD = "DNNMEM_OPERATORS_CHILD"
LONGEST_SECONDS = 60


def main() -> int:
    """Start the child on a virtual GPU, or be it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="a regular expression: run what it is found in")
    parser.add_argument("--samples", type=int, default=1, help="of each operator, at most")
    parser.add_argument("--gpu", default="h100-sxm-80gb")
    wanted = parser.parse_args()
    if os.environ.get(IN_CHILD):
        return run_all(wanted.only, wanted.samples)
    from dnnmem.profilers.virtual_gpu.launch import prepare

    cache = os.environ.get("DNNMEM_CACHE")
    launch = prepare(wanted.gpu, {**os.environ, IN_CHILD: "1"}, cache=Path(cache) if cache else None)
    return subprocess.run([sys.executable, *sys.argv], env=launch.environment, check=False).returncode


def cases(torch: types.ModuleType) -> dict[str, Callable[[int], None]]:
    """By name: a function that runs so many samples."""
    # torch's tests import expecttest, which nothing here calls
    sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=unittest.TestCase))  # type: ignore[arg-type]
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    found: dict[str, Callable[[int], None]] = {}
    for op in op_db:
        name = ".".join(filter(None, (op.name, op.variant_test_name)))
        found[name] = lambda count, op=op: run_operator(torch, op, count)
    for info in module_db:
        name = f"{info.module_cls.__module__.partition('.modules')[0]}.{info.module_cls.__name__}"
        found[name] = lambda count, info=info: run_module(torch, info, count)
    return found


def run_operator(torch: types.ModuleType, op: Sample, count: int) -> None:
    """Forward and backward of the first `count` samples of an OpInfo."""
    known = op.supported_dtypes("cuda")
    dtype = next((d for d in (torch.float32, torch.int64) if d in known), min(known, key=str))
    learns = op.supports_autograd and dtype.is_floating_point and dtype in op.supported_backward_dtypes("cuda")
    for _, sample in zip(range(count), op.sample_inputs("cuda", dtype, requires_grad=learns), strict=False):
        out = op(sample.input, *sample.args, **sample.kwargs)
        if learns:
            backward(torch, sample.output_process_fn_grad(out))
    torch.cuda.synchronize()


def run_module(torch: types.ModuleType, info: Sample, count: int) -> None:
    """Forward and backward of the first `count` inputs of a ModuleInfo, in training mode."""
    options = {"device": "cuda", "dtype": torch.float32, "requires_grad": True, "training": True}
    for _, sample in zip(range(count), info.module_inputs_func(info, **options), strict=False):
        module = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        out = module.to("cuda", torch.float32)(*sample.forward_input.args, **sample.forward_input.kwargs)
        backward(torch, out)
    torch.cuda.synchronize()


def backward(torch: types.ModuleType, out: object) -> None:
    """Gradients of all that has one."""
    leaves = torch.utils._pytree.tree_leaves(out)  # noqa: SLF001 - torch has no public one
    tensors = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
    if tensors:
        torch.autograd.backward(tensors, [torch.ones_like(t) for t in tensors])


def run_all(only: str, samples: int) -> int:
    """Run what `only` is found in, in forked workers; print what failed."""
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(1)
    for place, name in ((torch._C, "_cuda_isInBadFork"), (torch.cuda, "_is_in_bad_fork")):  # noqa: SLF001
        setattr(place, name, lambda: False)  # a virtual GPU outlives a fork
    begun = time.monotonic()
    todo = [(name, run) for name, run in cases(torch).items() if re.search(only, name)]
    found = {name: reason for name, reason in outcomes(todo, samples) if reason}
    died = [name for name, reason in found.items() if reason.startswith("died")]
    print(f"{len(todo)} run, {len(found)} failed, {len(died)} died, {time.monotonic() - begun:.0f} s")
    for name, reason in sorted(found.items(), key=lambda item: item[1]):
        print(f"{name:50} {reason}")
    return 1 if died else 0


def outcomes(todo: list[tuple[str, Callable[[int], None]]], samples: int) -> Iterator[tuple[str, str]]:
    """Name and why it failed, or nothing."""
    start = 0
    while start < len(todo):
        with tempfile.TemporaryFile("w+") as report, tempfile.TemporaryFile("w+") as errors:
            worker = os.fork()
            if not worker:
                os.dup2(errors.fileno(), sys.stderr.fileno())
                work(todo[start:], samples, report)
            _, status = os.waitpid(worker, 0)
            report.seek(0)
            errors.seek(0)
            done = [json.loads(line) for line in report]
            yield from done
            start += len(done)
            if status and start < len(todo):
                said = [line for line in errors.read().splitlines() if line.startswith("dnnmem: ")]
                yield todo[start][0], f"died: {said[-1] if said else f'status {status}'}"
                start += 1


def work(todo: list[tuple[str, Callable[[int], None]]], samples: int, report: TextIO) -> None:
    """What a worker does; it never returns."""
    for name, run in todo:
        reason = ""
        signal.alarm(LONGEST_SECONDS)  # a worker that is stuck dies, and says in what
        try:
            run(samples)
        except Exception as error:  # noqa: BLE001 - whatever an operator raises is what is reported
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        signal.alarm(0)
        report.write(json.dumps([name, reason]) + "\n")
        report.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
