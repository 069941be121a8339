"""What is done to every block alike can be done before blocks are repeated, or after."""

from __future__ import annotations

import pytest

from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Batch, Kernels, Mesh, Pipeline, Plan, Precision, Remat, Sharding, Tensor
from dnnmem.estimator.repeat import repeat
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
    """All that a trace says of storages that are used."""
    setup, ops, storages, pinned, modules = plain(trace)
    used = {i for op in ops for i in (*op[4], *op[5], *(e[2] for e in op[6]))} | pinned
    moved = [(op.moved_bytes, op.seconds) for op in trace.ops]
    return setup, ops, {i: s for i, s in storages.items() if i in used}, pinned, modules, moved


@pytest.mark.parametrize("name", sorted(STEPS))
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_blocks_are_repeated_before_or_after_the_passes(name, plan):
    # GIVEN a step of three blocks
    trace = gpt(3, **STEPS[name])
    # WHEN a model of seven is planned
    late, early = rewrite(trace, plan, layers=7), rewrite(repeat(trace, 7), plan)
    # THEN both ways make the same steps
    assert [_used(part) for part in late] == [_used(part) for part in early]
    for part in late:
        part.check()
