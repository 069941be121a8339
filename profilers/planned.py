"""The training script of a plan: `python -m dnnmem.profilers.planned REQUEST.json PLAN.json`, one process a rank.

It builds the target that the request names, applies the plan and makes the request's steps, as any script would: on
GPUs with torchrun, on virtual ones under `verify`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from dnnmem.estimator.plan_text import from_json
from dnnmem.profilers.apply.target import applied_target
from dnnmem.profilers.planned_model import built_without_memory, fill
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve

STEPS = 3
"""Steps that are made where the request names no number."""


def main(argv: list[str]) -> None:
    """Make the steps."""
    request = Request.from_json(Path(argv[0]).read_text("utf-8"))
    plan = from_json(json.loads(Path(argv[1]).read_text("utf-8")), argv[1])
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if plan.mesh.world_size > 1:
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    random.seed(request.seed)
    torch.manual_seed(request.seed)
    plain = resolve(request)
    if plan.splits_parameters:
        plain = replace(plain, make_model=partial(built_without_memory, plain.make_model, _say))
    target = applied_target(plain, plan)
    with torch.device(kind):
        model = target.make_model()
        if plan.splits_parameters:
            fill(model, torch.device(kind))
        optimizer = target.make_optimizer(p for p in model.parameters() if p.requires_grad)
        batch = target.make_batch()
    for step in range(request.steps or STEPS):
        target.train_step(model, batch, optimizer)
        if step < 2 and plan.sharding.strategy in ("ddp", "zero1") and kind == "cuda":
            _let_nccl_look()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _say(note: str) -> None:
    sys.stderr.write(f"{note}\n")


def _let_nccl_look() -> None:
    """DDP makes its buckets anew in the second step; the first ones live until NCCL's thread has seen them sent.

    It looks ten times a second, a virtual GPU's once for each 1,024 kernels. A step of a real size takes longer.
    """
    some = torch.zeros(1, device="cuda")
    for _ in range(1100):
        some.zero_()
    if distributed.is_initialized():
        distributed.all_reduce(some)
    torch.cuda.synchronize()
    time.sleep(0.3)


if __name__ == "__main__":
    main(sys.argv[1:])
