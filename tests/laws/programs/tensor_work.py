"""Ranks that split one model by each of several plans: what comes of it, written by the first.

tensor_work.py RANK WORLD_SIZE FOLDER        FOLDER/rank0.pt: plan -> losses, gradients, weights
"""

import sys

from torch import distributed
from torch.distributed.tensor import DTensor, Replicate, Shard

import dnnmem
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.profilers.apply.device_mesh import device_mesh
from tests.laws.programs.each_plan import each_plan
from tests.laws.programs.tensor_plans import PLANS, build, in_order, loss_of


def whole(name, tensor, full, kind, plan):
    """All of a tensor, wherever its parts are; plain parts are told by their shape."""
    if isinstance(tensor, DTensor):
        found = tensor.full_tensor()
    else:
        dims = [d for d in range(full.dim()) if full.shape[d] != tensor.shape[d]]
        placements = [Shard(dims[0]) if dims else Replicate()]
        mesh = device_mesh(plan)["tp"]
        made = DTensor.from_local(tensor, mesh, placements, shape=full.shape, stride=full.stride(), run_check=False)
        found = made.full_tensor()
    return in_order(name, found.detach().clone(), kind, plan.mesh.tp)


def train(way, settings, rank):
    """Some steps by a plan, on this rank's part of each batch."""
    kind = way.split(",")[0]
    model, optimizer, batches = build(kind)
    full = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = change(Plan(), settings)
    model, optimizer = dnnmem.apply(model, optimizer, plan)
    data = plan.mesh.data_ranks
    losses, grads = [], {}
    for batch in batches:
        mine = [part.chunk(data)[rank // plan.mesh.tp] for part in batch]
        loss = loss_of(model, mine)
        loss.backward()
        if not grads:
            grads = {name: whole(name, p.grad, full[name], kind, plan) for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        plain = loss.full_tensor() if isinstance(loss, DTensor) else loss
        losses.append(plain.detach().clone())
        distributed.all_reduce(losses[-1])
        losses[-1] /= plan.mesh.world_size
    weights = {name: whole(name, p, full[name], kind, plan) for name, p in model.named_parameters()}
    return {"losses": losses, "grads": grads, "weights": weights}


def main(rank, ranks, folder):
    """Each plan by itself."""
    each_plan(PLANS[ranks], train, rank, ranks, f"{folder}/meeting", f"{folder}/rank0.pt")


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
