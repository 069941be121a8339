"""The training script of a plan, one process a rank.

    python -m dnnmem.profilers.planned REQUEST.json PLAN.json [FOLDER]

It builds the target that the request names, applies the plan and makes the request's steps, as any script would: on
GPUs with torchrun, on virtual ones under `verify`. With a FOLDER each rank writes there what it needed, `rank0.json`.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import from_json
from dnnmem.profilers.apply.layout import lay_out
from dnnmem.profilers.apply.target import applied_target
from dnnmem.profilers.planned_model import built_on_device, built_on_host, built_without_memory, fill
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve
from dnnmem.profilers.tensors import map_tensors

STEPS, TIMED_STEPS = 3, 10
"""Steps that are made where the request names no number: for memory, and where they are timed too."""


def main(argv: list[str]) -> None:
    """Make the steps."""
    request = Request.from_json(Path(argv[0]).read_text("utf-8"))
    plan = from_json(json.loads(Path(argv[1]).read_text("utf-8")), argv[1])
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if plan.mesh.world_size > 1:
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    if len(argv) > 2:
        _measure(request, plan, kind, Path(argv[2]))
    else:
        step = _built(request, plan, kind)
        for number in range(request.steps or STEPS):
            step()
            _settle(number, plan, kind)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _built(request: Request, plan: Plan, kind: str) -> Callable[[], object]:
    """The target by its plan, ready to make steps."""
    random.seed(request.seed)
    torch.manual_seed(request.seed)
    plain = resolve(request)
    bare = plan.splits_parameters or plan.mesh.pp > 1 or (plan.mesh.tp > 1 and plan.mesh.cp == 1)
    if bare:
        plain = replace(plain, make_model=partial(built_without_memory, plain.make_model, _say))
    elif plan.offload.parameters or plan.mesh.tp > 1:
        plain = replace(plain, make_model=partial(built_on_host, plain.make_model))
    else:
        make_model = partial(built_on_device, plain.make_model, kind)
        plain = replace(plain, make_model=lambda: lay_out(make_model()))
    target = applied_target(plain, plan)
    with torch.device(kind):
        model = target.make_model()
        if bare:
            fill(model, torch.device(kind), torch.device("cpu") if plan.offload.parameters else None)
        optimizer = target.make_optimizer(p for p in model.parameters() if p.requires_grad)
    batch = map_tensors(target.make_batch(), lambda tensor: tensor.to(kind))  # as a loader's
    return lambda: target.train_step(model, batch, optimizer)


def _measure(request: Request, plan: Plan, kind: str, folder: Path) -> None:
    """Make the steps, and write what the last one needed and how long those after the first ones took."""
    rank = int(os.environ.get("RANK", "0"))
    found: dict[str, Any] = {"rank": rank, "outcome": "ran", "message": ""}
    try:
        found |= _measured(request, plan, kind)
    except torch.OutOfMemoryError as error:
        found |= {"outcome": "out_of_memory", "message": str(error)}
    except Exception as error:
        found |= {"outcome": "failed", "message": f"{type(error).__name__}: {error}"}
        raise
    finally:
        (folder / f"rank{rank}.json").write_text(json.dumps(found), "utf-8")
    if found["outcome"] != "ran":
        sys.stderr.flush()
        os._exit(1)  # the others wait for this rank


def _measured(request: Request, plan: Plan, kind: str) -> dict[str, Any]:
    step = _built(request, plan, kind)
    seconds: list[float] = []
    for number in range(request.steps or TIMED_STEPS):
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        if kind == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        _settle(number, plan, kind)
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated() if kind == "cuda" else 0,
        "reserved_bytes": torch.cuda.max_memory_reserved() if kind == "cuda" else 0,
        "step_seconds": statistics.median(seconds[STEPS:] or seconds[-1:]),
    }


def _say(note: str) -> None:
    sys.stderr.write(f"{note}\n")


def _settle(number: int, plan: Plan, kind: str) -> None:
    """After each of the first two steps of DDP, wait until NCCL's thread has seen what was sent.

    It makes its buckets anew in the second step, and the first ones live until that thread looks: ten times a second,
    a virtual GPU's once for each 1,024 kernels. A step of a real size takes longer than that.
    """
    if number > 1 or kind != "cuda" or from_context(plan).sharding.strategy not in ("ddp", "zero1"):
        return
    some = torch.zeros(1, device="cuda")
    for _ in range(1100):
        some.zero_()
    if distributed.is_initialized():
        distributed.all_reduce(some)
    torch.cuda.synchronize()
    time.sleep(0.3)


if __name__ == "__main__":
    main(sys.argv[1:])
