"""Two ranks that train one model, by each way to send gradients; each writes what it saw.

gradient_work.py RANK WORLD_SIZE FOLDER     FOLDER/rank0.pt: way -> buckets of the last step, weights, states
"""

import sys
from pathlib import Path

import torch
from torch import distributed

import dnnmem
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from tests.laws.programs.gradient_plans import PLANS, STEPS
from tests.laws.programs.shared_plans import build, loss_of


def watch(hook, seen):
    """Let `seen` have what goes into each bucket of a step, and what comes out of it."""
    send = hook.send

    def watched(bucket):
        before = [in_place_of_gradients(hook, bucket), *(some.clone() for some in hook.kept.get(bucket.index(), []))]
        calls = hook.steps
        future = send(bucket)
        after = [future.value().clone(), *(some.clone() for some in hook.kept.get(bucket.index(), []))]
        seen.setdefault(calls, []).append((before, after))
        return future

    hook.send = watched


def in_place_of_gradients(hook, bucket):
    """What is to be averaged: gradients, or first moments with them."""
    if hook.optimizer is None or not hook.is_warm:
        return bucket.buffer().clone()
    moments = torch.cat([hook.optimizer.state[p]["exp_avg"].flatten() for p in bucket.parameters()])
    return 0.9 * moments + 0.1 * bucket.buffer()


def train(settings, rank, ranks):
    """Some steps by a plan, on this rank's part of each batch."""
    model, optimizer, batches = build()
    plan = change(Plan(), settings)
    model, optimizer = dnnmem.apply(model, optimizer, plan)
    seen, found = {}, {"weights": [], "grads": [], "moments": []}
    hook = model.__dict__.get("_dnnmem_gradients")
    if hook is not None:
        watch(hook, seen)
    for step in range(STEPS):
        mine = [part.chunk(ranks)[rank] for part in batches[step % len(batches)]]
        for piece in zip(*(part.chunk(plan.batch.accumulation) for part in mine), strict=True):
            loss_of(model, piece).backward()
            found["grads"].append({name: p.grad.clone() for name, p in model.named_parameters()})
            optimizer.step()
            optimizer.zero_grad()
        found["weights"].append({name: t.clone() for name, t in model.state_dict().items()})
        if hook is not None and hook.optimizer is not None:
            states = [optimizer.state[p] for p in model.parameters()]
            found["moments"].append([(state["exp_avg"].clone(), state["exp_avg_sq"].clone()) for state in states])
    return {**found, "seen": seen}


def main(rank, ranks, folder):
    """Each way by itself."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.save({way: train(settings, rank, ranks) for way, settings in PLANS.items()}, Path(folder, f"rank{rank}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
