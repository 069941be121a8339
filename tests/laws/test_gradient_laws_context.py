"""However ranks share sequences, losses and gradients are those of one rank."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import distributed

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.apply.context_ring import ring_of_torch
from tests.laws.gloo import run_ranks, train_alone
from tests.laws.programs.context_plans import PLANS, build, loss_of

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")
NEAR = {"rtol": 1e-4, "atol": 1e-5}
"""Attention is put together from parts, and sums over positions are taken in another order."""
WAYS = [(ranks, way) for ranks, plans in PLANS.items() for way in plans]


def has_ring():
    """Whether this torch does ring attention over a process group."""
    try:
        return ring_of_torch() is not None
    except UnsupportedError:
        return False


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What as many real processes made of each plan, by their number."""

    @cache
    def of(ranks):
        return run_ranks("context_work.py", ranks, tmp_path_factory.mktemp("ranks"))[0]

    return of


@cache
def alone(kind):
    """The same steps by one rank, with no plan."""
    return train_alone(*build(kind), loss_of)


@pytest.mark.parametrize(("ranks", "way"), WAYS)
def test_ranks_train_as_one(ranks, way, shared):
    # GIVEN ranks that have parts of each sequence, and replicas of them that share the batch
    if way.startswith("hf"):
        pytest.importorskip("transformers")
    if "ulysses" not in way and not has_ring():
        pytest.skip(f"torch {torch.__version__} has no ring attention over a process group")
    found, wanted = shared(ranks)[way], alone(way.split(",")[0])
    assert not isinstance(found, str), found
    # THEN losses, the second one after a step of AdamW, and gradients are those of one
    torch.testing.assert_close(found["losses"], wanted["losses"], **NEAR)
    whole = {name: g for name, g in found["grads"].items() if g.shape == wanted["grads"][name].shape}
    assert whole.keys() == wanted["grads"].keys() or "tp" in way  # ranks of tp have parts of most
    torch.testing.assert_close(whole, {name: wanted["grads"][name] for name in whole}, **NEAR)
