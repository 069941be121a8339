"""Ranks that share the experts of one model by each of several plans: what comes of it, written by the first.

expert_work.py FOLDER        FOLDER/2.pt, FOLDER/4.pt: plan -> losses, gradients, weights, by number of ranks

Ranks are forks: transformers, which takes seconds, is imported once.
"""

import os
import sys

from torch import distributed

import dnnmem
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from tests.laws.programs.each_plan import each_plan
from tests.laws.programs.expert_plans import PLANS, build, loss_of


def train(way, settings, rank):
    """Some steps by a plan, on this rank's part of each batch."""
    model, optimizer, batches = build(way)
    plan = change(Plan(), settings)
    model, optimizer = dnnmem.apply(model, optimizer, plan)
    losses, grads = [], {}
    for batch in batches:
        loss = loss_of(model, batch.chunk(plan.mesh.data_ranks)[rank // plan.mesh.cp])
        loss.backward()
        grads = grads or {name: p.grad.full_tensor().clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().clone())
        distributed.all_reduce(losses[-1])
        losses[-1] /= plan.mesh.world_size
    weights = {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}
    return {"losses": losses, "grads": grads, "weights": weights}


def main(folder):
    """All numbers of ranks, one after the other."""
    import transformers.models.auto.modeling_auto  # noqa: F401

    for ranks in PLANS:
        children = []
        for rank in range(ranks):
            child = os.fork()
            if not child:
                each_plan(PLANS[ranks], train, rank, ranks, f"{folder}/meeting{ranks}", f"{folder}/{ranks}.pt")
                os._exit(0)
            children.append(child)
        if any(os.waitpid(child, 0)[1] for child in children):
            sys.exit(f"of {ranks} ranks some died")


main(sys.argv[1])
