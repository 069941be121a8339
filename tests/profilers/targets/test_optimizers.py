"""Every named optimizer trains, and only what is to be trained."""

from __future__ import annotations

import pytest
import torch

from dnnmem.estimator.errors import ModelError, UsageError
from dnnmem.profilers.targets.optimizers import OPTIMIZERS, optimizer_of


@pytest.mark.parametrize("name", [*OPTIMIZERS, "AdamW"])
def test_every_name_makes_an_optimizer_that_steps(name):
    model = torch.nn.Linear(3, 2)
    optimizer = optimizer_of(name)(model.parameters())
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert type(optimizer).__name__ == OPTIMIZERS[name.lower()][0]
    assert not torch.equal(before, model.weight)


def test_frozen_parameters_are_left_out():
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad_(requires_grad=False)
    (group,) = optimizer_of("adamw")(model.parameters()).param_groups
    assert [id(p) for p in group["params"]] == [id(model.bias)]


def test_a_frozen_model_has_nothing_to_train():
    with pytest.raises(ModelError, match="nothing to train"):
        optimizer_of("adamw")(torch.nn.Linear(3, 2).requires_grad_(requires_grad=False).parameters())


def test_options_are_converted_and_commas_inside_brackets_kept():
    made = optimizer_of("adamw:lr=0.5,betas=(0.8, 0.9),fused=true,foreach=none")(torch.nn.Linear(3, 2).parameters())
    assert {k: made.defaults[k] for k in ("lr", "betas", "fused", "foreach")} == {
        "lr": 0.5,
        "betas": (0.8, 0.9),
        "fused": True,
        "foreach": None,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sgd:params=3", "params is not known"),
        ("adam:lr=fast", "adam wants"),
        ("adam:fused", "is not name:option=value"),
    ],
)
def test_bad_options_are_refused_before_anything_is_built(text, said):
    with pytest.raises(UsageError, match=said):
        optimizer_of(text)


def test_a_value_that_torch_refuses_is_told():
    with pytest.raises(UsageError, match="Invalid learning rate"):
        optimizer_of("adam:lr=-1")(torch.nn.Linear(3, 2).parameters())
