"""How fast bytes leave a device: copies to and from the host, and collectives of the ranks that torchrun started.

Small messages tell the latency, large ones the bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from dnnmem.profilers.calibrate_clock import WallClock, seconds_once

Points = list[tuple[float, float]]
SIZES = (2**10, 2**16, 2**20, 2**24, 2**26)
"""Bytes of a message."""
_CALLS, _BLOCKS = 10, 4
"""As many on every rank: a collective waits for all."""
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")


def copies(device: str, *, rehearse: bool) -> dict[str, Points]:
    """Seconds of pinned copies by bytes, `to_device` and `to_host`; nothing on a CPU."""
    if device == "cpu":
        return {}
    time = _timer(device, rehearse=rehearse)
    found: dict[str, Points] = {"to_device": [], "to_host": []}
    for nbytes in SIZES:
        here = torch.empty(nbytes, dtype=torch.uint8).pin_memory()
        there = torch.empty(nbytes, dtype=torch.uint8, device=device)
        found["to_device"].append((nbytes, time(partial(there.copy_, here, non_blocking=True))))
        found["to_host"].append((nbytes, time(partial(here.copy_, there, non_blocking=True))))
    return found


def collectives(device: str, *, rehearse: bool) -> dict[str, Points]:
    """Seconds of each collective by bytes of the whole message, over all ranks; the environment says which."""
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        if device == "cuda":
            torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
        time = _timer(device, rehearse=rehearse)
        found: dict[str, Points] = {}
        for kind in KINDS:
            if device == "cpu" and kind in ("reduce_scatter", "all_to_all"):
                continue  # gloo has neither in all releases
            for nbytes in SIZES[: 3 if rehearse else None]:
                size, run = _call(kind, nbytes, device)
                found.setdefault(kind, []).append((size, time(run)))
        return found
    finally:
        dist.destroy_process_group()


def _timer(device: str, *, rehearse: bool) -> Callable[[Callable[[], object]], float]:
    if rehearse:
        return seconds_once
    clock = WallClock(device)

    def least(run: Callable[[], object]) -> float:
        run()
        return min(clock.seconds(run, _CALLS) for _ in range(_BLOCKS)) / _CALLS

    return least


def _call(kind: str, nbytes: int, device: str) -> tuple[int, Callable[[], object]]:
    """Bytes of the whole message and the call: a multiple of the ranks."""
    ranks = dist.get_world_size()
    each = max(nbytes // 4 // ranks, 1)
    whole, part = torch.zeros(each * ranks, device=device), torch.zeros(each, device=device)
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": partial(dist.all_reduce, whole),
        "all_gather": partial(dist.all_gather, list(whole.chunk(ranks)), part),
        "reduce_scatter": partial(dist.reduce_scatter, part, list(whole.chunk(ranks))),
        "all_to_all": partial(_all_to_all, whole),
        "broadcast": partial(dist.broadcast, whole, 0),
    }
    return each * ranks * 4, calls[kind]


def _all_to_all(whole: Tensor) -> None:
    dist.all_to_all_single(torch.empty_like(whole), whole)
