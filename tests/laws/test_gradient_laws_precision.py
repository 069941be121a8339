"""Gradients: a step under another compute type gives the plain step's loss and gradients, within what its type rounds.

bfloat16 keeps 8 bits of a number, float16 11: a product of n terms errs by about 2^-8 and 2^-11 of its size, whatever
n, since sums are kept in float32. A few layers of it are allowed four times as much, measured over a whole gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan, Precision
from dnnmem.profilers.apply.precision import to_model, to_optimizer

WITHIN = {"float32": 0.0, "tf32": 0.0, "bf16_amp": 2**-6, "fp16_amp": 2**-9, "bfloat16": 2**-5}
"""Relative to the size of the gradient; `bfloat16` also rounds the weights themselves."""


class Output(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor


class Classifier(nn.Module):
    """Returns what its `form` says, a loss that is made of another output among it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.body = nn.Sequential(nn.Linear(24, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 8))

    def forward(self, x, labels):
        logits = self.body(x)
        loss = functional.cross_entropy(logits, labels)
        forms = {"tensor": loss, "tuple": (logits, loss), "dict": {"logits": logits, "loss": loss}}
        return forms.get(self.form, Output(logits, loss))


def loss_of(output):
    if isinstance(output, dict):
        return output["loss"]
    return output[-1] if isinstance(output, tuple) else output


def gradients(compute, form="tensor", *, passes=1, scale=1.0):
    """Loss, gradients and the parameters after one update."""
    torch.manual_seed(0)
    model = Classifier(form)
    x, labels = torch.randn(16, 24) * scale, torch.randint(8, (16,))
    plan = Plan(precision=Precision(compute=compute))
    model = to_model(model, plan)
    optimizer = to_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, plan)
    for _ in range(passes):
        loss = loss_of(model(x, labels))
        loss.backward()
    found = [p.grad.float().clone() for p in model.parameters()]
    optimizer.step()
    return loss.detach(), found, [p.detach().float().clone() for p in model.parameters()]


def apart(one, other):
    """How far two lists of tensors are apart, relative to the size of the second."""
    one, other = (torch.cat([x.flatten() for x in some]) for some in (one, other))
    return float((one - other).norm() / other.norm())


@pytest.fixture(autouse=True)
def flags():
    """Leave torch's flags as they are."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@pytest.mark.parametrize("compute", WITHIN)
@pytest.mark.parametrize("form", ["tensor", "tuple", "named tuple", "dict"])
def test_gradients_are_those_of_the_plain_step(compute, form):
    # GIVEN the plain step  WHEN it computes in another type, whatever the model returns
    plain, found = gradients(None, form), gradients(compute, form)
    # THEN the loss comes in float32, and loss, gradients and the update agree within the type's rounding
    assert found[0].dtype is torch.float32
    assert float(found[0]) == pytest.approx(float(plain[0]), rel=WITHIN[compute])
    assert apart(found[1], plain[1]) <= WITHIN[compute]
    assert apart(found[2], plain[2]) <= WITHIN[compute]


def test_passes_that_add_up_are_unscaled_once():
    # GIVEN a loop that accumulates by itself, clips, and knows nothing of scales
    plain, found = gradients(None, passes=3), gradients("fp16_amp", passes=3)
    # THEN it sees true gradients after each pass
    assert apart(found[1], plain[1]) <= WITHIN["fp16_amp"]


def test_an_update_with_infinite_gradients_is_left_out():
    # GIVEN inputs that leave float16's range  WHEN the optimizer steps
    before = gradients("fp16_amp", scale=0.0)[2]
    torch.manual_seed(0)
    start = [p.detach().clone() for p in Classifier("tensor").parameters()]
    _, found, after = gradients("fp16_amp", scale=1e8)
    # THEN parameters stay as they were; a finite step moves them
    assert not all(bool(g.isfinite().all()) for g in found)
    assert all(torch.equal(a, b) for a, b in zip(start, after, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(start, before, strict=True))


@pytest.mark.parametrize("grad", [None, "float32"])
def test_master_weights_keep_what_bfloat16_would_round_away(grad):
    # GIVEN updates far below what a bfloat16 weight can take
    plan = Plan(precision=Precision(compute="bfloat16", param="float32", grad=grad))
    model = to_model(nn.Linear(4, 1, bias=False), plan)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = to_optimizer(torch.optim.SGD(model.parameters(), lr=1e-3), model, plan)
    for _ in range(8):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    # THEN they add up in the masters, and the weights follow
    assert model.weight.dtype is torch.bfloat16
    assert model.weight[0, 0].item() == pytest.approx(1 - 8e-3, abs=2**-8)
    assert model.weight[0, 0].item() < 1


def test_a_scheduler_can_wrap_the_step():
    plan = Plan(precision=Precision(compute="fp16_amp"))
    model = to_model(nn.Linear(4, 1), plan)
    optimizer = to_optimizer(torch.optim.SGD(model.parameters(), lr=1e-3), model, plan)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 5e-4


def test_autocast_of_a_narrow_model_is_refused():
    with pytest.raises(UnsupportedError, match="parameters in bfloat16"):
        to_model(nn.Linear(2, 2).bfloat16(), Plan(precision=Precision(compute="bf16_amp")))


def test_gradients_of_a_type_that_nobody_keeps_are_refused():
    plan = Plan(precision=Precision(compute="bfloat16", grad="float32"))
    model = to_model(nn.Linear(2, 2), plan)
    with pytest.raises(UnsupportedError, match="gradients in the type"):
        to_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, plan)
