"""A step that enters a model by a method of it enters by a call, or is told that it has to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.profilers.apply import apply_to_model
from dnnmem.profilers.apply.entrance import only_by_calls


class Model(nn.Module):
    """Methods of all kinds that steps call."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x):
        """Both."""
        return self.head(self.encoder(x))

    def loss(self, batch):
        """Runs them past the call."""
        return self.forward(batch["x"]).mean()

    def features(self, x):
        """Runs one, by another method."""
        return self.encode(x)

    def encode(self, x):
        """Runs one."""
        return self.encoder(x)

    def score(self, h):
        """Runs the other."""
        return self.head(h)

    def step(self, x):
        """Calls the model itself."""
        return self(x).mean()

    def mean(self, x):
        """Needs none of them."""
        return x.mean()


def applied(*settings):
    """A model with a plan, and what its calls are given."""
    model, calls = apply_to_model(Model(), change(Plan(), settings)), []
    model.register_forward_hook(lambda _, __, output: calls.append(output))
    return model, calls


X = torch.ones(3, 2)


WAYS = {
    "call": (lambda m: m(X), 1),
    "a method": (lambda m: m.loss({"x": X}), 1),
    "a method of a method": (lambda m: m.features(X), 1),
    "a method that calls": (lambda m: m.step(X), 1),
    "two methods": (lambda m: m.score(m.encode(X)), 1),
    "a method without modules": (lambda m: m.mean(X), 0),
    "a loss": (lambda m: m.mean(m(X)), 1),
}
"""Of a step with a model: how it enters, and how many calls that is."""


@pytest.mark.parametrize("way", WAYS)
def test_what_runs_modules_is_one_call(way):
    # GIVEN a plan  WHEN a step enters the model in some way  THEN hooks on its calls run once, and it gives the same
    enter, count = WAYS[way]
    model, calls = applied("optimizer.kernel=fused")
    plain = Model()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(enter(model), enter(plain))
    assert len(calls) == count


def test_a_copy_runs_itself():
    model, calls = applied("optimizer.kernel=fused")
    model.loss({"x": X})
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias.fill_(100.0)
    assert other.loss({"x": X}).item() > 50.0
    assert model.loss({"x": X}).item() < 50.0
    assert len(calls) == 3


def test_precision_holds_in_methods():
    # GIVEN autocast, which begins where the model is called  THEN a method computes in it, and gives float32 back
    model, _ = applied("precision.compute=bf16_amp")
    seen = []
    model.encoder.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    assert (model.encode(X).dtype, seen) == (torch.float32, [torch.bfloat16])


def test_entering_twice_is_refused_where_it_would_not_hold():
    # GIVEN a plan that casts  WHEN a step gives a method what the model has made  THEN it says how to do it
    model, _ = applied("precision.compute=bf16_amp")
    with pytest.raises(UsageError, match=r"gives Model\.score what the model has made") as caught:
        model.score(model.encode(X))
    assert "one method" in caught.value.hint


@pytest.mark.parametrize("parameters", [True, False])
def test_modules_used_past_the_model_are_refused(parameters):
    # GIVEN a model whose calls matter  WHEN a step uses its modules alone  THEN it is told
    model = Model()
    only_by_calls(model, parameters=parameters)
    with pytest.raises(UsageError, match="does not call it"):
        model.head(model.encoder(X)).mean().backward()
    # AND after a call nothing is watched any more
    model(X).mean().backward()
    model.head(model.encoder(X)).mean().backward()
