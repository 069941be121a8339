"""What is done to every block alike can be done before blocks are repeated, or after."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Batch, Kernels, Mesh, Pipeline, Plan, Precision, Remat, Sharding, Tensor
from dnnmem.estimator.repeat import repeat, repeated_flops
from dnnmem.estimator.stage_memory import worst_stage
from tests.estimator.passes.steps import LLAMA, WRITTEN, gpt, plain

STEPS = {"gpt": {}, "llama": LLAMA, "written": WRITTEN, "bfloat16": {**LLAMA, "dtype": "bfloat16"}}
WIDE = Precision(param="float32", grad="float32")
SPLIT = Tensor(sequence_parallel=True, loss_parallel=True)
PLANS = {
    "none": Plan(),
    "precision": Plan(precision=WIDE),
    "tensor": Plan(mesh=Mesh(tp=2)),
    "sequence": Plan(mesh=Mesh(tp=2), tensor=SPLIT),
    "full": Plan(remat=Remat(policy="full")),
    "whole": Plan(remat=Remat(policy="full", early_stop=False)),
    "every": Plan(remat=Remat(policy="every", every=2)),
    "selective": Plan(remat=Remat(policy="selective")),
    "attention": Plan(remat=Remat(policy="attention")),
    "zero3": Plan(mesh=Mesh(dp_shard=4), sharding=Sharding(strategy="zero3"), remat=Remat(policy="selective")),
    "fused": Plan(mesh=Mesh(tp=2), kernels=Kernels(fusion="pointwise"), batch=Batch(accumulation=2)),
    "all": Plan(
        mesh=Mesh(tp=2, pp=2, dp_shard=2),
        batch=Batch(accumulation=4),
        precision=WIDE,
        tensor=SPLIT,
        remat=Remat(policy="selective"),
        sharding=Sharding(strategy="zero2"),
        pipeline=Pipeline(schedule="interleaved", chunks=2),
    ),
}


def _used(trace):
    """All that a trace says of storages that are used; those that are only pinned in any order."""
    setup, ops, storages, pinned, modules = plain(trace)
    used = {i for op in ops for i in (*op[4], *op[5], *(e[2] for e in op[6]))} | {e[2] for e in setup}
    moved = [(op.moved_bytes, op.seconds) for op in trace.ops]
    resting = sorted(repr(storages[i]) for i in pinned - used)
    return setup, ops, {i: s for i, s in storages.items() if i in used}, pinned & used, resting, modules, moved


@pytest.mark.parametrize("name", sorted(STEPS))
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_blocks_are_repeated_before_or_after_the_passes(name, plan):
    # GIVEN a step of three blocks
    trace = gpt(3, **STEPS[name])
    # WHEN a model of seven is planned
    late, early = rewrite(trace, plan, layers=7), rewrite(repeat(trace, 7), plan)
    # THEN both ways make the same steps; of a pipeline's chunks that are one, the names are those of one
    said = _shapes if plan.mesh.pp > 1 else lambda traces: [_used(part) for part in traces]
    assert said(late) == said(early)
    for part in late:
        part.check()


def _shapes(traces):
    """What chunks say, their modules and the names of their ops' temporaries left out."""
    found = []
    for trace in traces:
        bare = {i: replace(s, module=()) for i, s in trace.storages.items()}
        ops = tuple(
            replace(op, module=(), events=tuple(e._replace(storage=max(e.storage, -1)) for e in op.events))
            for op in trace.ops
        )
        found.append(_used(replace(trace, ops=ops, storages=bare, modules=())))
    return found


@pytest.mark.parametrize("name", ["gpt", "bfloat16"])
@pytest.mark.parametrize("strategy", ["none", "zero2", "zero3"])
@pytest.mark.parametrize("chunks", [1, 2])
def test_chunks_between_the_first_and_the_last_are_one(name, strategy, chunks):
    # GIVEN a plan that splits 24 blocks evenly into 4 stages, of 1 or 2 chunks
    plan = Plan(
        mesh=Mesh(pp=4, tp=2, dp_shard=1 if strategy == "none" else 2),
        batch=Batch(accumulation=4),
        remat=Remat(policy="selective"),
        sharding=Sharding(strategy=strategy),
        pipeline=Pipeline(schedule="interleaved", chunks=2) if chunks == 2 else Pipeline(),
    )
    trace = gpt(3, **STEPS[name])
    early, late = rewrite(repeat(trace, 24), plan), rewrite(trace, plan, layers=24)
    # THEN the chunks are those of the whole model, and the same object where they do the same
    assert len({id(chunk) for chunk in late}) == 3
    assert _shapes(late) == _shapes(early)
    # AND so is what the worst stage holds, and the flops
    device = find_cluster("h100:8").device
    assert worst_stage(late, plan, device) == worst_stage(early, plan, device)
    assert repeated_flops(trace, 24) == sum(op.flops for op in repeat(trace, 24).ops)
