"""The plain step: how a batch goes in, where the loss is, and what stays alive."""

# ruff: noqa: ARG005  # what a forward takes is the case in hand, not what it does

from __future__ import annotations

import weakref
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import DnnmemError, ModelError, UsageError
from dnnmem.profilers.step import find_loss, model_inputs, plain_step

X, Y, Z = torch.ones(2, 3), torch.zeros(2), torch.full((2,), 2.0)
LOSS = torch.tensor(1.0, requires_grad=True)


def module(forward):
    """A module whose forward is a function without self."""
    cls = type("Net", (nn.Module,), {"forward": staticmethod(forward)})
    return cls()


def names(model, batch, **options):
    """Which of X, Y, Z goes in, by position and by keyword."""
    args, kwargs = model_inputs(model, batch, **options)
    known = {id(X): "x", id(Y): "y", id(Z): "z"}
    return [known[id(a)] for a in args], {key: known[id(a)] for key, a in kwargs.items()}


@pytest.mark.parametrize(
    ("forward", "batch", "keeps_labels", "expected"),
    [
        (lambda x: x, X, False, (["x"], {})),
        (lambda x: x, (X, Y), False, (["x"], {})),
        (lambda x: x, [X, Y], True, (["x"], {})),
        (lambda idx, targets=None: idx, (X, Y), False, (["x", "y"], {})),
        (lambda idx, targets=None: idx, (X,), False, (["x"], {})),
        (lambda x, mask=None: x, (X, Y), True, (["x"], {})),
        (lambda x, mask=None: x, (X, Y, Z), True, (["x", "y"], {})),
        (lambda src, tgt: src, (X, Y), True, (["x", "y"], {})),
        (lambda src, tgt: src, (X, Y, Z), True, (["x", "y"], {})),
        (lambda *xs: xs, (X, Y, Z), False, (["x", "y", "z"], {})),
        (lambda *xs: xs, (X, Y, Z), True, (["x", "y"], {})),
        (lambda x, *, scale=1: x, (X, Y), False, (["x"], {})),
        (lambda x, y: x, {"y": Y, "x": X}, False, ([], {"y": "y", "x": "x"})),
        (lambda x: x, {"x": X, "labels": Y}, True, ([], {"x": "x"})),
        (lambda **kw: kw, {"x": X, "labels": Y}, False, ([], {"x": "x", "labels": "y"})),
    ],
)
def test_a_batch_goes_in_as_forward_takes_it(forward, batch, keeps_labels, expected):
    assert names(module(forward), batch, keeps_labels=keeps_labels) == expected


@pytest.mark.parametrize(
    ("forward", "batch", "keeps_labels", "said"),
    [
        (lambda x: x, {"x": X, "labels": Y}, False, "the batch has labels, but Net.forward takes x"),
        (lambda x: x, {"image": X, "labels": Y}, True, "the batch has image, labels, but Net.forward takes x"),
        (lambda a, b, c: a, (X, Y), False, "the batch has 2 elements, but Net.forward takes 3"),
        (lambda: X, (X,), False, "the batch has 1 elements, but Net.forward takes none"),
        (lambda x: x, (), False, "the batch has 0 elements, but Net.forward takes 1"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(forward, batch, keeps_labels, said):
    with pytest.raises(UsageError) as caught:
        model_inputs(module(forward), batch, keeps_labels=keeps_labels)
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "output",
    [
        LOSS,
        {"loss": LOSS, "logits": X},
        OrderedDict(loss=LOSS),
        SimpleNamespace(loss=LOSS, logits=X),
        (X, LOSS),
        [LOSS, None, X],
    ],
    ids=lambda output: type(output).__name__,
)
def test_the_loss_is_found_where_models_put_it(output):
    assert find_loss(output) is LOSS


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (X, "a tensor of shape (2, 3)"),
        ((X, X), "a tuple of"),
        ((LOSS, LOSS), "a tuple of"),
        ({"classifier": LOSS, "box": LOSS}, "a dict with keys classifier, box"),
        (SimpleNamespace(loss=None), "a SimpleNamespace"),
        (None, "None"),
    ],
)
def test_a_loss_is_never_guessed(output, said):
    # GIVEN an output without exactly one loss  WHEN it is looked for
    with pytest.raises(UsageError) as caught:
        find_loss(output)
    # THEN the error says what is there, and shows make_loss in six lines
    assert f"the model returns {said}" in str(caught.value)
    assert "def make_loss(output, batch):" in caught.value.hint


@pytest.mark.parametrize("returned", [X, 3.0, None])
def test_make_loss_must_return_a_scalar(returned):
    model = nn.Linear(3, 1)
    step = plain_step(lambda output, batch: returned)
    with pytest.raises(ModelError, match="make_loss returned"):
        step(model, X, torch.optim.SGD(model.parameters()))


def test_a_loss_without_gradient_names_the_reason():
    model = nn.Linear(3, 1).requires_grad_(requires_grad=False)
    with pytest.raises(DnnmemError, match="no trainable parameter leads to it") as caught:
        plain_step(lambda output, batch: output.sum())(model, X, None)
    assert caught.value.exit_code == 3


def test_the_step_is_the_loop_that_everybody_writes():
    # GIVEN two equal models
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 1), nn.Linear(3, 1)
    twin.load_state_dict(model.state_dict())
    optimizer, other = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (model, twin))
    step = plain_step(lambda output, batch: (output - batch[1]).pow(2).mean())
    for _ in range(3):
        # WHEN one is trained by the step and one by hand
        step(model, (X, Y), optimizer)
        (twin(X) - Y).pow(2).mean().backward()
        other.step()
        other.zero_grad(set_to_none=True)
    # THEN their weights are equal, and no gradient is left
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert model.weight.grad is None


def test_the_output_lives_until_the_step_ends_and_no_longer():
    alive = {}

    class Net(nn.Linear):
        def forward(self, x):
            output = super().forward(x)
            alive["output"] = weakref.ref(output)
            return output

    class Watch(torch.optim.SGD):
        def zero_grad(self, **options):
            alive["at zero_grad"] = alive["output"]() is not None
            super().zero_grad(**options)

    model = Net(3, 1)
    plain_step(lambda output, batch: output.sum())(model, X, Watch(model.parameters(), lr=0.1))
    assert alive["at zero_grad"] is True
    assert alive["output"]() is None
