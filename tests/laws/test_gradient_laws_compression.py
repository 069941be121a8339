"""What is kept by masks gives the plain step's gradients to the bit; codes and projections are off by what they round.

A code is off by less than its group's step, so a gradient made of it is by less than the sum of steps; it is right on
average. Losses are equal, and so are the random numbers that a model draws.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Compression, Offload, Plan, Remat
from dnnmem.profilers.apply import codes
from dnnmem.profilers.apply.compression import to_model
from dnnmem.profilers.apply.remat import to_model as with_remat
from tests.estimator.passes.steps import sample

SIZES = {"vocab": 200, "width": 64, "layers": 2, "heads": 4, "context": 64, "dropout": 0.1}
IMAGES = {"blocks": (1, 1), "width": 16, "classes": 10}
LEVELS = {8: 255, 4: 15, 2: 3}


def gpt():
    module = sample("gpt")
    torch.manual_seed(3)
    batch = module.make_batch(8, 64, SIZES["vocab"])
    return module.make_model(**SIZES), lambda model: module.make_loss(model(batch[0]), batch)


def resnet():
    module = sample("resnet")
    torch.manual_seed(3)
    images, labels = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
    return module.make_model(**IMAGES), lambda model: nn.functional.cross_entropy(model(images), labels)


def lines():
    """A linear layer that reads what another one made."""
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 16)), torch.randn(512, 32)
    return model, lambda model: model(x).square().mean()


def grads(model, loss):
    """Loss and gradients of a step, the same random numbers drawn each time."""
    model.zero_grad()
    torch.manual_seed(1)
    value = loss(model)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters())]


def off(found, plain):
    """Relative error of all gradients."""
    a, b = (torch.cat([g.flatten() for g in some[1:]]) for some in (found, plain))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("made", [gpt, resnet])
def test_masks_lose_nothing(made):
    model, loss = made()
    plain, names = grads(model, loss), list(model.state_dict())
    masked = to_model(model, Plan(compression=Compression(masks=True)))
    # THEN nothing differs, in the second step as well
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(plain, grads(masked, loss), strict=True))
    assert list(masked.state_dict()) == names


@pytest.mark.parametrize("bits", LEVELS)
def test_a_gradient_is_off_by_less_than_the_steps(bits):
    # GIVEN a layer, what it reads, and the gradient of what it makes
    model, loss = lines()
    plain = grads(model, loss)
    seen = {}
    model[0].register_forward_hook(lambda _m, _i, output: seen.update(read=output.detach()))
    model[1].register_full_backward_hook(lambda _m, _i, given: seen.update(given=given[0].detach()))
    found = grads(to_model(model, Plan(compression=Compression(bits=bits))), loss)
    groups = seen["read"].view(-1, 256)
    steps = ((groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)) / LEVELS[bits]).expand_as(groups)
    # THEN its weight's gradient is off by less than the steps that the gradient multiplies, and all others are exact
    bound = seen["given"].abs().T @ steps.reshape(seen["read"].shape)
    assert (found[3] - plain[3]).abs().max() > 0
    assert ((found[3] - plain[3]).abs() <= bound + 1e-6).all()
    assert all(torch.equal(found[k], plain[k]) for k in (0, 1, 2, 4))


@pytest.mark.parametrize("way", [Compression(bits=2), Compression(bits=4, group=64), Compression(projection=0.25)])
def test_gradients_are_right_on_average(way):
    # GIVEN many draws
    model, loss = lines()
    plain = grads(model, loss)
    model = to_model(model, Plan(compression=way))
    draws = [grads(model, loss) for _ in range(64)]
    mean = [torch.stack(some).mean(0) for some in zip(*draws, strict=True)]
    # THEN their mean is nearer by about the root of their number than one of them is
    one = sum(off(draw, plain) for draw in draws) / 64
    assert 0 < off(mean, plain) < 1.5 * one / 8


@pytest.mark.parametrize("made", [gpt, resnet])
def test_errors_follow_the_step(made):
    # GIVEN a whole model
    model, loss = made()
    plain = grads(model, loss)
    errors = {}
    for bits in LEVELS:
        model, loss = made()
        found = grads(to_model(model, Plan(compression=Compression(bits=bits))), loss)
        assert torch.equal(found[0], plain[0])
        errors[bits] = off(found, plain)
    # THEN noise grows as the steps do, and 8 bits are below 2 %
    assert errors[8] < 0.02
    assert errors[4] / errors[8] == pytest.approx(LEVELS[8] / LEVELS[4], rel=0.5)
    assert errors[2] / errors[4] == pytest.approx(LEVELS[4] / LEVELS[2], rel=0.5)


def test_a_storage_that_two_ops_save_is_encoded_once(monkeypatch):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(64, 64)

        def forward(self, x):
            x = self.first(x)
            return x.sin() + x.cos() + x.view(-1).exp().view_as(x)

    made, model, x = [], Shared(), torch.randn(512, 64)
    encode = codes.encode
    monkeypatch.setattr("dnnmem.profilers.apply.compression.encode", lambda *a, **k: made.append(a) or encode(*a, **k))
    model = to_model(model, Plan(compression=Compression(bits=8)))
    model(x).sum().backward()
    # THEN what sine and cosine read is, and what the exponential made
    assert len(made) == 2


@pytest.mark.parametrize("policy", ["full", "every"])
def test_what_is_computed_again_is_not_made_smaller(policy):
    model, loss = gpt()
    plain = grads(model, loss)
    plan = Plan(compression=Compression(bits=8), remat=Remat(policy=policy))
    found = grads(to_model(with_remat(model, plan), plan), loss)
    assert torch.equal(found[0], plain[0])
    assert 0 < off(found, plain) < 0.02


def test_what_it_does_not_go_with_is_refused():
    plan = Plan(compression=Compression(bits=8))
    for other in (
        replace(plan, remat=Remat(policy="selective")),
        replace(plan, offload=Offload(activations="all")),
        Plan(compression=Compression(projection=0.5), remat=Remat(policy="full")),
    ):
        with pytest.raises(UnsupportedError, match="compression"):
            to_model(nn.Linear(2, 2), other)


def test_without_gradients_nothing_is_kept():
    model = to_model(lines()[0], Plan(compression=Compression(bits=2)))
    with torch.no_grad():
        assert model(torch.ones(600, 32)).grad_fn is None
