"""What an operator costs beside its arithmetic and traffic: its dispatch, told from whole steps of a tiny model.

    cpu     launch = step / ops                                        the CPU issues the ops that it runs
    cuda    host = step / ops, where the GPU waits for each op;  launch = a tiny kernel in a full queue

Whole steps, because modules, autograd and the optimizer's Python cost as much as the operators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dnnmem.profilers.calibrate_clock import CpuClock, CudaClock, WallClock, seconds_of
from dnnmem.profilers.calibrate_keys import watch

_WIDTH = 16


def costs_of_an_op(device: str, *, rehearse: bool) -> dict[str, float]:
    """`host_seconds` and `launch_seconds` of one operator."""
    step = tiny_step(device)
    step()
    count = watch(step).host_ops.sum()
    if rehearse:
        return {"host_seconds": 1.0, "launch_seconds": 1.0}
    if device == "cpu":
        each = seconds_of(step, CpuClock(torch.get_num_threads())) / count
        return {"host_seconds": 0.0, "launch_seconds": each}
    x = torch.zeros(1, device=device)
    launch = seconds_of(lambda: x.add_(1), CudaClock())
    return {
        "host_seconds": seconds_of(step, WallClock(device)) / count,
        "launch_seconds": launch,
    }


def tiny_step(device: str) -> Callable[[], None]:
    """Forward, backward and update of a model whose tensors are so small that only its operators' number counts."""
    blocks = [nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.GELU()) for _ in range(8)]
    model = nn.Sequential(*blocks, nn.Linear(_WIDTH, _WIDTH)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(4, _WIDTH, device=device)
    labels = torch.zeros(4, dtype=torch.long, device=device)

    def step() -> None:
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
