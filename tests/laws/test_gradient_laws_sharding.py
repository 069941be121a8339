"""However ranks share the work, losses, gradients and weights are those of one rank with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import distributed

from tests.laws.programs.shared_plans import PLANS, STEPS, build, loss_of

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
RANKS = 2
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""Sums over ranks are in another order than sums over a batch."""


@pytest.fixture(scope="module")
def shared(root, tmp_path_factory):
    """What two real processes made of each plan."""
    folder = tmp_path_factory.mktemp("ranks")
    program = root / "tests" / "laws" / "programs" / "shared_work.py"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(RANKS), str(folder)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in started]
    assert not any(process.returncode for process in started), "\n".join(said)[-4000:]
    return torch.load(folder / "rank0.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone():
    """The same steps by one rank, with no plan."""
    model, optimizer, batches = build()
    losses, grads = [], {}
    for batch in batches[:STEPS]:
        loss = loss_of(model, batch)
        loss.backward()
        grads = grads or {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return {"losses": losses, "grads": grads, "weights": {name: t.clone() for name, t in model.state_dict().items()}}


@pytest.mark.parametrize("way", [way for way in PLANS if "float16" not in way])
def test_ranks_train_as_one(way, shared, alone):
    # GIVEN two ranks, each with half of every batch  THEN their mean loss is that of the whole batch
    found = shared[way]
    torch.testing.assert_close(found["losses"], alone["losses"], **NEAR)
    # AND so are the gradients, and the weights after some steps of AdamW, under the names that the model has
    assert list(found["weights"]) == list(alone["weights"])
    torch.testing.assert_close(found["grads"], alone["grads"], **NEAR)
    torch.testing.assert_close(found["weights"], alone["weights"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero3"])
def test_gradients_in_float16_are_scaled_back(strategy, shared, alone):
    # GIVEN two ranks in float16  THEN losses and gradients are near those of float32
    found = shared[f"{strategy}, float16"]
    torch.testing.assert_close(found["losses"], alone["losses"], rtol=2**-9, atol=0.0)
    torch.testing.assert_close(found["grads"], alone["grads"], rtol=2**-5, atol=2**-9)


def test_nothing_changes_where_owners_update_on_the_host(shared):
    torch.testing.assert_close(
        shared["zero1, float16, updated on the host"], shared["zero1, float16"], rtol=0.0, atol=0.0
    )
