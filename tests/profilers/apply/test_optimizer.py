"""Another optimizer in the place of a model's own: what the libraries that it comes from are asked for."""

from __future__ import annotations

import sys

import pytest
import torch

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Optimizer, Plan
from dnnmem.profilers.apply.optimizer import to_optimizer


@pytest.mark.parametrize(("name", "library"), [("adamw8bit", "torchao"), ("adamw8bit_bnb", "bitsandbytes")])
def test_a_library_that_is_not_there_is_named(name, library, monkeypatch):
    # GIVEN an optimizer of a library that is not installed  WHEN it is asked for
    monkeypatch.setitem(sys.modules, library, None)
    model = torch.nn.Linear(2, 1)
    with pytest.raises(UnsupportedError, match=library) as raised:
        to_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, Plan(optimizer=Optimizer(name=name)))
    # THEN the error says how to have it
    assert raised.value.hint == f"pip install {library}"
