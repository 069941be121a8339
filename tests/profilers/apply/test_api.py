"""`dnnmem.apply`: what it takes, what it keeps and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import dnnmem
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.plan import Mesh, Plan, Precision, Remat, Sharding


def line():
    """A model and an optimizer over two groups of it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters()}]
    return model, torch.optim.SGD(groups, lr=0.1)


def test_a_plan_is_an_object_a_mapping_or_a_file(tmp_path):
    # GIVEN one plan in its three forms
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"schema": "dnnmem.plan/1", "precision": {"compute": "bfloat16"}}))
    forms = [Plan(precision=Precision(compute="bfloat16")), {"precision": {"compute": "bfloat16"}}, path, str(path)]
    for form in forms:
        model, optimizer = dnnmem.apply(*line(), form)
        # THEN each is done, and the optimizer's groups hold what the model has
        assert model[0].weight.dtype is torch.bfloat16
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
        assert optimizer.param_groups[0]["params"][0] is model[0].weight


def test_names_stay_and_a_default_plan_does_nothing():
    model, optimizer = line()
    weight, names = model[0].weight, list(model.state_dict())
    found, again = dnnmem.apply(model, optimizer, Plan())
    assert found is model
    assert again is optimizer
    assert found[0].weight is weight
    assert list(found.state_dict()) == names


@pytest.mark.parametrize(
    ("plan", "error", "says"),
    [
        (Plan(mesh=Mesh(dp_shard=2), sharding=Sharding(strategy="zero3")), UsageError, "there is no process group"),
        (Plan(mesh=Mesh(dp_shard=2)), UsageError, "share nothing"),
        (
            Plan(mesh=Mesh(dp_shard=2), sharding=Sharding(strategy="zero1", even_parts=True)),
            UnsupportedError, "even_parts=true is predicted only",
        ),
        (Plan(mesh=Mesh(dp_shard=2, tp=2), sharding=Sharding(strategy="zero3")), UnsupportedError, "tp is 2"),
        (Plan(mesh=Mesh(tp=2)), UnsupportedError, "tp is 2"),
        (Plan(remat=Remat(policy="full")), UnsupportedError, "blocks in a list"),
        ("no/such/plan.json", UsageError, "no/such/plan.json cannot be read"),
        ({"mesh": {"tp": "two"}}, UsageError, "mesh.tp"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied_is_refused(plan, error, says):
    with pytest.raises(error, match=says):
        dnnmem.apply(*line(), plan)


def test_a_plan_comes_before_the_first_step_and_once():
    # GIVEN an optimizer with states
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(UsageError, match="states of 2 parameters"):
        dnnmem.apply(model, optimizer, Plan())
    # AND a model that has its plan
    found = dnnmem.apply(*line(), Plan())
    with pytest.raises(UsageError, match="a plan already"):
        dnnmem.apply(*found, Plan())
