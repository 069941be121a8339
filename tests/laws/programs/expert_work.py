"""Ranks that share the experts of one model by each of several plans: what comes of it, written by the first.

expert_work.py RANK WORLD_SIZE FOLDER        FOLDER/rank0.pt: plan -> losses, gradients, weights
"""

import sys
import traceback
from pathlib import Path

import torch
from torch import distributed

import dnnmem
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from tests.laws.programs.expert_plans import PLANS, build, loss_of


def train(way, settings, rank):
    """Some steps by a plan, on this rank's part of each batch."""
    model, optimizer, batches = build(way)
    plan = change(Plan(), settings)
    model, optimizer = dnnmem.apply(model, optimizer, plan)
    losses, grads = [], {}
    for batch in batches:
        loss = loss_of(model, batch.chunk(plan.mesh.data_ranks)[rank])
        loss.backward()
        grads = grads or {name: p.grad.full_tensor().clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().clone())
        distributed.all_reduce(losses[-1])
        losses[-1] /= plan.mesh.world_size
    weights = {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}
    return {"losses": losses, "grads": grads, "weights": weights}


def main(rank, ranks, folder):
    """Each plan by itself."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    found = {}
    for way, settings in PLANS[ranks].items():
        try:
            found[way] = train(way, settings, rank)
        except Exception:  # noqa: BLE001, PERF203 - the next plan runs all the same
            found[way] = traceback.format_exc()
    if rank == 0:
        torch.save(found, Path(folder, "rank0.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
