"""Every model of the zoo trains, really and under fake tensors, and the techniques do what their names say."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from tests.models.fake import Fake
from tests.models.zoo import ZOO


@pytest.fixture(params=sorted(ZOO))
def entry(request):
    torch.manual_seed(0)
    return ZOO[request.param]


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_two_steps_train(entry):
    model, batch = entry.make_model(), entry.make_batch(4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = entry.make_optimizer(model.parameters())
    losses = [entry.train_step(model, batch, optimizer).item() for _ in range(2)]
    # THEN losses are finite, what learns has moved (an expert may see no token), and what is frozen has not
    assert torch.tensor(losses).isfinite().all()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved - {name for name in before if name.startswith("average.")} == set(trained(model))


def test_the_loss_has_a_graph(entry):
    loss = entry.forward_loss(entry.make_model(), entry.make_batch(2))
    assert loss.shape == ()
    assert loss.requires_grad


def test_the_batch_size_is_a_size_of_every_input(entry):
    # GIVEN batches of 2 and of 4  THEN each tensor of the larger has twice the elements; edges stand in rows
    for small, large in zip(entry.make_batch(2), entry.make_batch(4), strict=True):
        assert large.numel() == 2 * small.numel()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_step_traces_under_fake_tensors(entry):
    def step():
        with Fake():
            model, batch = entry.make_model(), entry.make_batch(4)
            return entry.train_step(model, batch, entry.make_optimizer(model.parameters()))

    if entry.needs_values:
        with pytest.raises(DataDependentOutputException):
            step()
    else:
        assert step().shape == ()


def test_many_families_are_here():
    families = {"cnn", "resnet", "segmentation_unet", "vit", "bert", "gpt", "llama", "moe", "t5", "lstm"}
    assert families | {"diffusion_unet", "gnn"} <= set(ZOO)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    entry = ZOO["accumulation"]
    model, batch = entry.make_model(), entry.make_batch(4)
    entry.forward_loss(model, batch).backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    seen = []
    optimizer = entry.make_optimizer(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in model.parameters()))
    entry.train_step(model, batch, optimizer)
    for parts, expected in zip(seen, whole, strict=True):
        torch.testing.assert_close(parts, expected)


def test_tied_weights_are_one_parameter():
    tied, plain = ZOO["tied_lm"].make_model(), ZOO["gpt"].make_model()
    assert tied.head.weight is tied.tokens.weight
    assert len(list(tied.parameters())) == len(list(plain.parameters())) - 1
