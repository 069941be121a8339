"""Ranks that share the sequences of one model by each of several plans: what comes of it, written by the first.

context_work.py RANK WORLD_SIZE FOLDER        FOLDER/rank0.pt: plan -> losses, gradients
"""

import sys

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

import dnnmem
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from tests.laws.programs.context_plans import PLANS, build, loss_of
from tests.laws.programs.each_plan import each_plan
from tests.laws.programs.tensor_plans import in_order


def train(way, settings, rank):
    """Some steps by a plan, on what this rank's group reads of each batch."""
    kind = way.split(",")[0]
    model, optimizer, batches = build(kind)
    plan = change(Plan(), settings)
    model, optimizer = dnnmem.apply(model, optimizer, plan)
    group = rank // (plan.mesh.tp * plan.mesh.cp)
    losses, grads = [], {}
    for batch in batches:
        loss = loss_of(model, [part.chunk(plan.mesh.data_ranks)[group] for part in batch])
        loss.backward()
        if not grads:
            found = {name: p.grad for name, p in model.named_parameters()}
            whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}
            grads = {name: in_order(name, g.clone(), kind, plan.mesh.tp) for name, g in whole.items()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().clone().as_subclass(torch.Tensor))
        distributed.all_reduce(losses[-1])
        losses[-1] /= plan.mesh.world_size
    return {"losses": losses, "grads": grads}


def main(rank, ranks, folder):
    """Each plan by itself."""
    each_plan(PLANS[ranks], train, rank, ranks, f"{folder}/meeting", f"{folder}/rank0.pt")


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
