"""Two ranks that train one model by each of several plans: what comes of it, written by the first.

shared_work.py RANK WORLD_SIZE FOLDER        FOLDER/rank0.pt: plan -> losses, gradients, weights, names of the state
"""

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

import dnnmem
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from tests.laws.programs.shared_plans import PLANS, STEPS, build, loss_of


def whole(tensor):
    """All of a tensor, wherever its parts are."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def train(settings, rank, ranks, *, by_method):
    """Some steps by a plan, on this rank's part of each batch."""
    model, optimizer, batches = build()
    plan = change(Plan(), settings)
    model, optimizer = dnnmem.apply(model, optimizer, plan)
    losses, grads = [], {}
    for batch in batches[:STEPS]:
        mine = [part.chunk(ranks)[rank] for part in batch]
        for piece in zip(*(part.chunk(plan.batch.accumulation) for part in mine), strict=True):
            loss = model.loss(piece) if by_method else loss_of(model, piece)
            loss.backward()
            if not grads and plan.batch.accumulation == 1:
                grads = {name: whole(p.grad) for name, p in model.named_parameters()}
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach().clone())
            distributed.all_reduce(losses[-1])
            losses[-1] /= ranks
    state = model.state_dict()
    return {"losses": losses, "grads": grads, "weights": {name: whole(t) for name, t in state.items()}}


def main(rank, ranks, folder):
    """Each plan by itself."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    found = {way: train(some, rank, ranks, by_method=way.endswith("method")) for way, some in PLANS.items()}
    if rank == 0:
        torch.save(found, Path(folder, "rank0.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
