"""Gradients: a loss by chunks, and one fused with the head, are the plain step's.

In float64 they differ by its rounding alone; in float32 sums are taken in another order: within 2^-20 of their size.
Losses and gradients of logits are float32 inside, so that float64 too is held to that.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Batch, Loss, Plan, Precision
from dnnmem.profilers.apply import apply_to_model, apply_to_optimizer

VOCAB, WIDTH = 40, 16
WITHIN = 2**-20
LOSSES = [Loss(chunks=4), Loss(chunks=3), Loss(fused=True), Loss(chunks=5, fused=True)]


class Tagger(nn.Module):
    """Logits of each token, the head with a bias or tied to the embedding."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, VOCAB, bias=not tied)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        return self.head(self.body(self.tokens(tokens)))


def flat(logits, targets, **options):
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), **options)


def shifted(logits, targets):
    return functional.cross_entropy(logits[..., :-1, :].contiguous().view(-1, VOCAB), targets[:, 1:].reshape(-1))


def second(logits, targets):
    return nn.CrossEntropyLoss()(logits.transpose(1, 2), targets)


def ignoring(logits, targets):
    return flat(logits, targets.masked_fill(targets < 10, -100))


def summed(logits, targets):
    return flat(logits, targets, reduction="sum") / targets.numel()


def picked(logits, targets):
    chosen = targets > 9
    return functional.cross_entropy(logits[chosen], targets[chosen])


FORMS = [flat, shifted, second, ignoring, summed, picked]


def step(plan, form, *, tied, passes=1):
    """The loss, and the gradients of all parameters."""
    torch.manual_seed(0)
    model = apply_to_model(Tagger(tied=tied), plan)
    optimizer = apply_to_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, plan)
    tokens, targets = torch.randint(VOCAB, (3, 7)), torch.randint(VOCAB, (3, 7))
    for _ in range(passes):
        loss = form(model(tokens), targets)
        loss.backward()
        optimizer.step()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def apart(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_are_those_of_the_plain_step(loss, form, tied):
    # GIVEN the plain step  WHEN its loss is taken by chunks, however the program asks for it
    plain, found = step(Plan(), form, tied=tied), step(Plan(loss=loss), form, tied=tied)
    # THEN loss and gradients are the same but for the order of sums
    assert float(found[0]) == pytest.approx(float(plain[0]), rel=WITHIN)
    assert apart(found[1], plain[1]) <= WITHIN


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_share_the_step(loss):
    accumulated = Batch(accumulation=2)
    plain = step(Plan(batch=accumulated), flat, tied=True, passes=2)
    found = step(Plan(batch=accumulated, loss=loss), flat, tied=True, passes=2)
    assert float(found[0]) == pytest.approx(float(plain[0]), rel=WITHIN)
    assert apart(found[1], plain[1]) <= WITHIN


@pytest.mark.parametrize("compute", ["bf16_amp", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_narrow_types_round_as_they_do_without(loss, compute):
    # GIVEN the float32 step  WHEN it computes in bfloat16 with a loss by chunks: bfloat16 keeps 8 bits
    narrow = Precision(compute=compute)
    plain, found = step(Plan(), flat, tied=True), step(Plan(precision=narrow, loss=loss), flat, tied=True)
    assert float(found[0]) == pytest.approx(float(plain[0]), rel=2**-6)
    assert apart(found[1].float(), plain[1]) <= 2**-5


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_no_cross_entropy_is_named(loss):
    # GIVEN a program that makes log-probabilities by hand
    def by_hand(logits, targets):
        return functional.nll_loss(logits.log_softmax(-1).flatten(0, 1), targets.flatten())

    # THEN it is told which function took the logits
    with pytest.raises(UnsupportedError, match="log_softmax"):
        step(Plan(loss=loss), by_hand, tied=True)
    with pytest.raises(UnsupportedError, match="label smoothing"):
        step(Plan(loss=loss), lambda *both: flat(*both, label_smoothing=0.1), tied=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_can_be_looked_at(loss):
    # GIVEN a model under the plan  WHEN nothing learns, or metrics are taken on the way
    torch.manual_seed(0)
    plain = Tagger(tied=True)
    torch.manual_seed(0)
    model = apply_to_model(Tagger(tied=True), Plan(loss=loss))
    tokens = torch.randint(VOCAB, (3, 7))
    # THEN its logits are what they were
    with torch.no_grad():
        assert torch.equal(model(tokens), plain(tokens))
    logits = model(tokens)
    assert logits.shape == (3, 7, VOCAB)
    assert torch.equal(logits.argmax(-1), plain(tokens).argmax(-1))
    assert torch.allclose(logits.detach(), plain(tokens).detach())


def test_a_fused_loss_has_its_gradients_once():
    model = apply_to_model(Tagger(tied=True), Plan(loss=Loss(fused=True)))
    tokens = torch.randint(VOCAB, (3, 7))
    loss = flat(model(tokens), tokens)
    loss.backward(retain_graph=True)
    with pytest.raises(UnsupportedError, match="runs twice"):
        loss.backward()


def test_a_model_without_a_head_is_named():
    with pytest.raises(UnsupportedError, match="no linear layer"):
        apply_to_model(nn.Sequential(nn.Conv2d(3, 4, 3)), Plan(loss=Loss(chunks=2)))
