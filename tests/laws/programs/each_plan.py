"""A rank of a program that trains by each of several plans."""

import traceback
from pathlib import Path

import torch
from torch import distributed


def each_plan(plans, train, rank, ranks, meeting, written):
    """What `train(way, settings, rank)` gives for each plan, or how it failed, written by the first rank."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    found = {}
    for way, settings in plans.items():
        try:
            found[way] = train(way, settings, rank)
        except Exception:  # noqa: BLE001, PERF203 - the next plan runs all the same
            found[way] = traceback.format_exc()
    if rank == 0:
        torch.save(found, Path(written))
    distributed.barrier()
    distributed.destroy_process_group()
