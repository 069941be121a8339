"""However ranks share the experts, losses, gradients and weights are those of one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from tests.laws.gloo import train_alone
from tests.laws.programs.expert_plans import PLANS, build, loss_of

pytestmark = pytest.mark.skipif(
    not distributed.is_gloo_available() or not hasattr(FSDPModule, "set_gradient_divide_factor"),
    reason="this torch has no gloo, or an FSDP2 whose groups cannot divide by another number than their size",
)
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""Sums over ranks are in another order than one product's."""
WAYS = [(ranks, way) for ranks, plans in PLANS.items() for way in plans]


@pytest.fixture(scope="module")
def shared(root, tmp_path_factory):
    """What as many real processes made of each plan, by their number."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("ranks")
    program = root / "tests" / "laws" / "programs" / "expert_work.py"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, str(program), str(folder)], env=environment, check=True, timeout=600)
    return {ranks: torch.load(folder / f"{ranks}.pt", weights_only=True) for ranks in PLANS}


@cache
def alone(way):
    """The same steps by one rank, with no plan."""
    return train_alone(*build(way), loss_of)


@pytest.mark.parametrize(("ranks", "way"), WAYS)
def test_ranks_train_as_one(ranks, way, shared):
    # GIVEN ranks that hold parts of the experts, each with samples of its own
    found, wanted = shared[ranks][way], alone(way.split(",")[0])
    assert not isinstance(found, str), found
    # THEN losses, gradients and weights after some steps of AdamW are those of one, under the same names
    torch.testing.assert_close(found["losses"], wanted["losses"], **NEAR)
    torch.testing.assert_close(found["grads"], wanted["grads"], **NEAR)
    torch.testing.assert_close(found["weights"], wanted["weights"], rtol=1e-3, atol=1e-3)
