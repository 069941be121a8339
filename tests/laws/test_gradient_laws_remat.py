"""Whatever is computed again, loss and gradients are those of the plain step, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.profilers.apply.remat import to_model
from tests.estimator.passes.steps import SIZES, sample

PLANS = {
    "full": Remat(policy="full"),
    "all of each": Remat(policy="full", early_stop=False),
    "every second": Remat(policy="every", every=2),
    "selective": Remat(policy="selective"),
    "selective, attention too": Remat(policy="selective", keep_attention=False),
    "attention": Remat(policy="attention"),
    "segments": Remat(policy="segments", segments="0-1,3"),
    "segments in segments": Remat(policy="segments", segments="0-3(1-2(2),3)"),
    "ops: nothing": Remat(policy="ops", keep="input"),
    "ops: products": Remat(policy="ops", keep="addmm.0.2,attention"),
    "ops: a dropout": Remat(policy="ops", keep="native_dropout.0,gelu"),
    "ops: by block": Remat(policy="ops", keep="0:all/1-2:native_layer_norm,add.1/3:input"),
    "the whole of each": Remat(policy="segments", segments="0-3(1-2)", early_stop=False),
}


def gpt():
    """Four blocks with dropout, which has to be drawn alike."""
    module = sample("gpt")
    batch = module.make_batch(2, 16, SIZES["vocab"])
    return (
        module.make_model(**SIZES, layers=4, dropout=0.1),
        lambda model: module.make_loss(model(batch[0]), batch),
    )


def grads(model, loss):
    """Loss and gradients of a step, the same random numbers drawn each time."""
    torch.manual_seed(1)
    value = loss(model)
    value.backward()
    return [value, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("way", PLANS)
def test_gradients_are_equal(way):
    # GIVEN a model, and the same computed again in part
    torch.manual_seed(0)
    model, loss = gpt()
    names = list(model.state_dict())
    plain = [t.detach().clone() for t in grads(model, loss)]
    model.zero_grad()
    again = to_model(model, Plan(remat=PLANS[way]))
    # THEN nothing but memory and time differs, in the second step as well
    for _ in range(2):
        found = grads(again, loss)
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
        model.zero_grad()
    assert list(again.state_dict()) == names


class Counted(nn.Module):
    """A block that counts its runs."""

    runs = 0

    def __init__(self):
        super().__init__()
        self.line, self.act = nn.Linear(4, 4), nn.Tanh()

    def forward(self, x):
        self.runs += 1
        return self.act(self.line(x))


class Chain(nn.Module):
    """Blocks that follow each other, `between` what is called in between."""

    def __init__(self, count=4, between=None):
        super().__init__()
        self.blocks = nn.ModuleList(Counted() for _ in range(count))
        self.between = between

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            x = self.between(x) if self.between else x
        return x


@pytest.mark.parametrize(
    ("segments", "runs"),
    [("0-3", [2, 2, 2, 2]), ("1-2", [1, 2, 2, 1]), ("0-3(1-2)", [2, 3, 3, 2]), ("0-3(2-3)", [2, 2, 2, 2])],
)
def test_blocks_run_as_often_as_segments_say(segments, runs):
    # GIVEN nested runs; one at the end of another needs no run of its own: the outer one stops before it
    model = to_model(Chain(), Plan(remat=Remat(policy="segments", segments=segments)))
    model(torch.ones(2, 4)).sum().backward()
    assert [block.runs for block in model.blocks] == runs


def test_what_lies_between_blocks_is_refused():
    model = to_model(Chain(between=torch.sin), Plan(remat=Remat(policy="segments", segments="0-1")))
    with pytest.raises(UnsupportedError, match=r"blocks\.1 is not called with what blocks\.0 returned"):
        model(torch.ones(2, 4))
    # AND nothing stays open behind the error
    assert torch.ones(2, requires_grad=True).sin().sum().backward() is None


def test_without_gradients_nothing_is_kept_or_repeated():
    model = to_model(Chain(), Plan(remat=Remat(policy="full")))
    with torch.no_grad():
        model(torch.ones(2, 4))
    assert [block.runs for block in model.blocks] == [1] * 4


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UnsupportedError, match="finds nothing to compute again in Linear"):
        to_model(nn.Linear(2, 2), Plan(remat=Remat(policy="full")))
