"""However a model is cut into stages, losses, gradients and weights are those of one process."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from tests.laws.gloo import run_ranks
from tests.laws.programs.pipelines import MICRO, SHARDED, WAYS, batches, build, loss_of

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""Sums over micro-batches are divided at the end, not before."""


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """What so many real processes made of each schedule."""
    return run_ranks("pipelines.py", request.param, tmp_path_factory.mktemp("ranks"), seconds=240)


def alone(way):
    """The same steps by one process."""
    model = build(way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, grads = [], {}
    for step in batches():
        of_step = [loss_of(model(batch[0]), batch) / MICRO for batch in step]
        for loss in of_step:
            loss.backward()
        grads = grads or {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(torch.stack(of_step).sum().detach())
    return {"losses": losses, "grads": grads, "weights": {name: p.detach() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("way", [*WAYS, *SHARDED])
def test_stages_train_as_one_model(way, ranks):
    if way not in ranks[0]:
        pytest.skip("two stages of two ranks are four")
    # GIVEN ranks with a part of the model each
    found, plain = [rank[way] for rank in ranks], alone(way)
    # THEN the one with the last stage has the loss, or the two
    told = [rank["losses"] for rank in found if rank["losses"][0] is not None]
    assert len(told) == 1 + (way in SHARDED)
    for losses in told:
        torch.testing.assert_close(losses, plain["losses"], **NEAR)
    # AND together they have each parameter once, but for a tied one that two have, under the name it has
    for what, near in (("grads", NEAR), ("weights", {"rtol": 1e-3, "atol": 1e-3})):
        merged = {name: tensor for rank in reversed(found) for name, tensor in rank[what].items()}
        tied = merged.pop("head.weight", None) if "head.weight" not in plain[what] else None
        torch.testing.assert_close(merged, plain[what], **near, check_device=False)
        if tied is not None:
            torch.testing.assert_close(tied, plain[what]["tokens.weight"], **near)
    if "zbv" not in way and "dualpipe" not in way:
        counts = [len(rank["grads"]) for rank in found]
        assert sum(counts) == (len(plain["grads"]) + ("tied" in way)) * (1 + (way in SHARDED))
