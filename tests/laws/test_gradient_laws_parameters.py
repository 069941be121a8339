"""Wherever parameters rest, losses, gradients and updates are those of the plain step, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Batch, Mesh, Offload, Plan, Remat, Sharding
from dnnmem.profilers.apply import apply_to_model, apply_to_optimizer
from tests.laws.test_gradient_laws_remat import gpt

STREAMED = Offload(parameters=True, optimizer=True)
PLANS = {
    "all blocks": Plan(offload=STREAMED),
    "two of four": Plan(offload=Offload(parameters=True, optimizer=True, resident=2)),
    "computed again": Plan(offload=STREAMED, remat=Remat(policy="full")),
    "some of them": Plan(offload=STREAMED, remat=Remat(policy="segments", segments="0,2")),
    "ops of them": Plan(offload=STREAMED, remat=Remat(policy="selective")),
    "activations too": Plan(offload=Offload(parameters=True, optimizer=True, activations="all", min_bytes=1)),
    "accumulation": Plan(offload=STREAMED, batch=Batch(accumulation=2)),
}


def trained(plan, kind, *, clip=False, steps=3):
    """Losses of some steps, and the parameters that they lead to."""
    torch.manual_seed(0)
    model, loss = gpt()
    model = apply_to_model(model, plan)
    optimizer = apply_to_optimizer(kind(model.parameters()), model, plan)
    losses = []
    for step in range(steps * plan.batch.accumulation):
        torch.manual_seed(step)
        value = loss(model)
        value.backward()
        losses.append(value.detach())
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return [*losses, *(p.detach() for p in model.parameters())], list(model.state_dict())


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


@pytest.mark.parametrize("kind", [adamw, sgd])
@pytest.mark.parametrize("way", PLANS)
def test_training_is_the_same(way, kind):
    # GIVEN a model that is trained plainly, and one whose blocks come to the GPU one by one
    plan, clip = PLANS[way], way != "accumulation"
    plain, names = trained(Plan(batch=plan.batch), kind, clip=clip)
    found, theirs = trained(plan, kind, clip=clip)
    assert theirs == names
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_two_blocks_are_there_at_a_time():
    # GIVEN a model that counts the blocks whose memory is taken, at gradients and after blocks
    torch.manual_seed(0)
    model, loss = gpt()
    model = apply_to_model(model, PLANS["all blocks"])
    order = model.blocks[0].forward.func.__self__.order
    seen = []

    def look(*_):
        seen.append(sum(block.device.untyped_storage().nbytes() > 0 for block in order))

    for block in order:
        block.twins[0][1].register_post_accumulate_grad_hook(look)
    for block in model.blocks:
        block.register_forward_hook(look)
    loss(model).backward()
    # THEN it is the one that runs and the one that comes; none at the end
    assert len(seen) >= 8
    assert set(seen) <= {1, 2}
    assert not any(block.device.untyped_storage().nbytes() for block in order)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(offload=Offload(parameters=True, optimizer=True, resident=4)), "none is left to rest on the host"),
        (Plan(offload=STREAMED, remat=Remat(policy="segments", segments="0-1")), "computes several blocks again"),
        (Plan(offload=STREAMED, mesh=Mesh(dp_replicate=2), sharding=Sharding(strategy="ddp")), "is for one GPU"),
    ],
)
def test_what_cannot_be_is_refused(plan, words):
    with pytest.raises(UnsupportedError, match=words):
        apply_to_model(gpt()[0], plan)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UnsupportedError, match="finds 0 blocks"):
        apply_to_model(nn.Linear(2, 2), PLANS["all blocks"])
