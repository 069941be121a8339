"""Whatever is computed again, loss and gradients are those of the plain step, to the bit."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.keep_text import base_name
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
    "ops: dropout's product": Remat(policy="ops", keep="mul.0,gelu,addmm.3"),
    "ops: all that takes long": Remat(policy="ops", keep="products"),
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


def test_attention_within_torchs_own_function_is_computed_again_too():
    # GIVEN blocks whose attention is torch's `MultiheadAttention`, with dropout
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    plain = nn.Sequential(nn.Sequential(block, nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)))
    again = to_model(deepcopy(plain), Plan(remat=Remat(policy="attention")))
    x = torch.randn(2, 8, 32)
    # WHEN both make a step  THEN their gradients are equal
    one, other = (grads(model, lambda it: it(x).square().mean()) for model in (plain, again))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


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


class Decoder(nn.Module):
    """A block that reads two states."""

    def __init__(self):
        super().__init__()
        self.block = Counted()

    def forward(self, x, memory):
        return self.block(x) * memory


class Translator(nn.Module):
    """A list of blocks whose last output a second list reads, beside an embedding of its own."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList(Counted() for _ in range(2))
        self.enter = Counted()
        self.decoder = nn.ModuleList(Decoder() for _ in range(2))

    def forward(self, x):
        memory = x
        for block in self.encoder:
            memory = block(memory)
        x = self.enter(x)
        for block in self.decoder:
            x = block(x, memory)
        return x


def test_a_run_over_two_lists_with_an_embedding_between_is_refused():
    # GIVEN an encoder and a decoder  WHEN a run goes from one to the other
    model = to_model(Translator(), Plan(remat=Remat(policy="segments", segments="1-2")))
    # THEN the decoder's embedding, which lies in between, would be lost
    with pytest.raises(UnsupportedError, match=r"decoder\.0 is not called with what encoder\.1 returned alone"):
        model(torch.ones(2, 4))
    # AND a run of the decoder's own blocks, which all read the encoder's output, is done
    model = to_model(Translator(), Plan(remat=Remat(policy="segments", segments="0-1,2-3")))
    model(torch.ones(2, 4)).sum().backward()
    assert [block.block.runs for block in model.decoder] == [2, 2]


def test_without_gradients_nothing_is_kept_or_repeated():
    model = to_model(Chain(), Plan(remat=Remat(policy="full")))
    with torch.no_grad():
        model(torch.ones(2, 4))
    assert [block.runs for block in model.blocks] == [1] * 4


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UnsupportedError, match="finds nothing to compute again in Linear"):
        to_model(nn.Linear(2, 2), Plan(remat=Remat(policy="full")))


class Noisy(nn.Module):
    """Draws random numbers three times."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x):
        noise = torch.rand_like(x)
        return functional.dropout((self.line(x) * noise).tanh(), 0.5, training=True) * torch.rand_like(x).exp()


@pytest.mark.parametrize("keep", ["rand_like", "rand_like.0", "rand_like.1,tanh", "rand_like.0,exp"])
def test_what_is_kept_of_random_numbers_shifts_no_others(keep):
    # GIVEN blocks of which some draws are kept and others done again
    torch.manual_seed(0)
    model = nn.Sequential(*(Noisy() for _ in range(2)))
    plain = [t.clone() for t in grads(model, lambda model: model(torch.ones(2, 4)).sum())]
    after = torch.rand(1)
    model.zero_grad()
    again = to_model(model, Plan(remat=Remat(policy="ops", keep=keep)))
    # THEN each draw is what it was, and so are those behind the step
    found = grads(again, lambda model: model(torch.ones(2, 4)).sum())
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert torch.equal(torch.rand(1), after)


def test_ops_run_again_unless_they_are_kept():
    # GIVEN blocks of a linear layer and a tanh, whose backward passes need both outputs but for the last op's
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            runs[base_name(str(func))] += 1
            return func(*args, **(kwargs or {}))

    counted = []
    for keep in ("input", "addmm", "addmm,tanh", "1:input"):
        runs = Counter()
        model = to_model(Chain(count=2), Plan(remat=Remat(policy="ops", keep=keep)))
        loss = model(torch.ones(2, 4)).sum()
        with Mode():
            loss.backward()
        counted.append((runs["addmm"], runs["tanh"]))
    assert counted == [(2, 2), (0, 2), (0, 0), (1, 1)]


def test_what_changes_a_tensor_in_place_is_not_kept():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)) for _ in range(2)))
    with pytest.raises(UsageError, match=r"relu\.0, which changes a tensor in place in 0"):
        to_model(model, Plan(remat=Remat(policy="ops", keep="relu.0")))(torch.ones(1, 2))


def test_a_block_that_the_model_lacks_is_told():
    with pytest.raises(UsageError, match="the model has 2 blocks, 0 to 1"):
        to_model(Chain(count=2), Plan(remat=Remat(policy="ops", keep="2:input")))
