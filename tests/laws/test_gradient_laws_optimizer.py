"""Optimizers, accumulation and the optimizer on the host, really applied on the CPU, train as the plain step does."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.plan import Batch, Offload, Optimizer, Plan, Precision
from dnnmem.profilers.apply import apply_to_model, apply_to_optimizer
from dnnmem.profilers.optimizers.layerwise import Lamb, Lars
from dnnmem.profilers.optimizers.lion import Lion
from dnnmem.profilers.optimizers.shampoo import Shampoo
from dnnmem.profilers.optimizers.soap import Soap
from tests.estimator.passes.steps import SIZES, sample

MODELS = ("gpt", "resnet", "mlp")
BATCH, STEPS = 8, 3


def model_and_batch(name):
    """A small sample model with inputs and targets."""
    torch.manual_seed(0)
    module = sample(name)
    if name == "gpt":
        return module, module.make_model(layers=2, **SIZES), module.make_batch(BATCH, 16, SIZES["vocab"])
    if name == "mlp":
        return module, module.make_model(width=32), module.make_batch(BATCH)
    return module, module.make_model(blocks=(1, 1), width=16, classes=10), module.make_batch(BATCH, 32, 10)


def norms_alone(model):
    """Statistics of a batch are another thing in parts: let normalizations use kept ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def loss_of(module, model, batch):
    return module.make_loss(model(batch[0]), batch)


def trained(name, plan, maker, *, parts=1):
    """Losses, and parameters after some steps of a loop that knows nothing of the plan."""
    module, model, batch = model_and_batch(name)
    model = apply_to_model(norms_alone(model), plan)
    optimizer = apply_to_optimizer(maker(model.parameters()), model, plan)
    losses = []
    for _ in range(STEPS):
        for part in range(parts):
            some = tuple(tensor.chunk(parts)[part] for tensor in batch)
            loss = loss_of(module, model, some)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, [p.detach() for p in model.parameters()], optimizer


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("maker", [adamw, sgd])
@pytest.mark.parametrize("kernel", ["for_loop", "foreach", "fused"])
def test_a_kernel_changes_nothing(name, maker, kernel):
    losses, parameters, _ = trained(name, Plan(), maker)
    found, updated, optimizer = trained(name, Plan(optimizer=Optimizer(kernel=kernel)), maker)
    assert [optimizer.param_groups[0][flag] for flag in ("foreach", "fused")] == [
        kernel == "foreach", kernel == "fused",
    ]  # fmt: skip
    assert found == pytest.approx(losses, rel=1e-5)
    for one, other in zip(updated, parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 if maker is adamw else 1e-6)  # see below


@pytest.mark.parametrize(("name", "cls"), [("sgd", "SGD"), ("adamw", "AdamW"), ("adafactor", "Adafactor")])
def test_another_algorithm_is_torchs_own(name, cls):
    # GIVEN a loop with AdamW, and the same with the other one made by hand
    plan = Plan(optimizer=Optimizer(name=name))
    decay = {} if name == "sgd" else {"weight_decay": 0.1}
    byhand = trained("gpt", Plan(), lambda parameters: getattr(torch.optim, cls)(parameters, lr=1e-3, **decay))
    applied = trained("gpt", plan, adamw)
    # THEN they are one
    assert type(applied[2]).__name__ == cls
    assert applied[0] == byhand[0]
    assert all(torch.equal(one, other) for one, other in zip(applied[1], byhand[1], strict=True))


OWN = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "lion": lambda parameters: Lion(parameters, lr=1e-3, weight_decay=0.1),
    "lamb": lambda parameters: Lamb(parameters, lr=1e-3, weight_decay=0.1),
    "lars": lambda parameters: Lars(parameters, lr=1e-3),
    "shampoo": lambda parameters: Shampoo(parameters, lr=1e-3, weight_decay=0.1),
    "soap": lambda parameters: Soap(parameters, lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", OWN)
def test_another_algorithm_is_the_one_that_is_named(name, model):
    # GIVEN a loop with AdamW, and the same with the other one made by hand
    byhand = trained(model, Plan(), OWN[name])
    applied = trained(model, Plan(optimizer=Optimizer(name=name)), adamw)
    # THEN they are one
    assert type(applied[2]) is type(byhand[2])
    assert applied[0] == byhand[0]
    assert all(torch.equal(one, other) for one, other in zip(applied[1], byhand[1], strict=True))


INSIDE = {"gpt": {"qkv", "out", "0", "2"}, "mlp": {"0", "2", "4", "6"}}
"""Layers of matrices inside of models: not embeddings, which give the output too, and not the last."""


@pytest.mark.parametrize("model", INSIDE)
@pytest.mark.parametrize("name", ["muon", "galore"])
def test_hidden_matrices_are_in_a_group_of_their_own(name, model):
    module, built, batch = model_and_batch(model)
    optimizer = apply_to_optimizer(adamw(built.parameters()), built, Plan(optimizer=Optimizer(name=name)))
    names = {id(p): path.split(".")[-2:] for path, p in built.named_parameters()}
    groups = {group["hidden"]: [names[id(p)] for p in group["params"]] for group in optimizer.param_groups}
    assert {owner for owner, _ in groups[True]} == INSIDE[model]
    assert all(kind == "weight" for _, kind in groups[True])
    assert sum(map(len, groups.values())) == len(names)
    # AND a step changes all parameters
    before = [p.detach().clone() for p in built.parameters()]
    loss_of(module, built, batch).backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(built.parameters(), before, strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", [Optimizer(), Optimizer(name="lion"), Optimizer(name="muon")], ids=str)
def test_an_update_may_come_with_its_gradient(name, optimizer):
    # GIVEN updates at the end of the step
    losses, parameters, _ = trained(name, Plan(optimizer=optimizer), adamw)
    found, updated, applied = trained(name, Plan(optimizer=replace(optimizer, in_backward=True)), adamw)
    # THEN those in the backward pass are the same, and leave no gradients
    assert found == losses
    assert all(torch.equal(one, other) for one, other in zip(updated, parameters, strict=True))
    assert all(p.grad is None for group in applied.param_groups for p in group["params"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("state", "rtol"), [("bfloat16", 2**-7), ("float16", 2**-9)])
def test_moments_of_16_bits_train_alike(name, state, rtol):
    losses, _, plain = trained(name, Plan(), adamw)
    found, _, narrow = trained(name, Plan(optimizer=Optimizer(state=state)), adamw)
    # THEN losses are alike, moments rest in 16 bits, and are those of the plain step but for their rounding
    assert found == pytest.approx(losses, rel=1e-3)
    for wanted, rounded in zip(plain.state.values(), narrow.state.values(), strict=True):
        assert rounded["exp_avg_sq"].dtype is getattr(torch, state)
        wide = rounded["exp_avg"].float() * rounded.get("exp_avg_scale", 1)
        assert (wide - wanted["exp_avg"]).norm() <= 4 * rtol * wanted["exp_avg"].norm() + 1e-6


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("maker", [adamw, sgd])
def test_micro_batches_are_one_batch(name, maker):
    # GIVEN four micro-batches  THEN losses and parameters are those of the whole batch
    losses, parameters, _ = trained(name, Plan(), maker)
    found, updated, _ = trained(name, Plan(batch=Batch(accumulation=4)), maker, parts=4)
    means = [sum(found[4 * n : 4 * n + 4]) / 4 for n in range(STEPS)]
    assert means == pytest.approx(losses, rel=1e-4)
    if maker is sgd:  # AdamW divides what rounding left of a zero by itself
        for one, other in zip(updated, parameters, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("maker", [adamw, sgd])
def test_the_host_updates_alike(name, maker):
    losses, parameters, _ = trained(name, Plan(), maker)
    found, updated, _ = trained(name, Plan(offload=Offload(optimizer=True)), maker)
    assert found == losses
    assert all(torch.equal(one, other) for one, other in zip(updated, parameters, strict=True))


@pytest.mark.parametrize("maker", [adamw, sgd])
@pytest.mark.parametrize(
    "plan",
    [
        Plan(batch=Batch(accumulation=4)),
        Plan(precision=Precision(compute="fp16_amp")),
        Plan(precision=Precision(compute="fp16_amp"), batch=Batch(accumulation=2)),
        Plan(precision=Precision(compute="bfloat16")),
    ],
    ids=["micro-batches", "fp16", "fp16, micro-batches", "bfloat16"],
)
def test_the_host_updates_alike_with(plan, maker):
    parts = plan.batch.accumulation
    losses, parameters, _ = trained("gpt", plan, maker, parts=parts)
    found, updated, _ = trained("gpt", replace(plan, offload=Offload(optimizer=True)), maker, parts=parts)
    assert found == losses
    assert all(torch.equal(one, other) for one, other in zip(updated, parameters, strict=True))


@pytest.mark.parametrize("maker", [adamw, sgd])
@pytest.mark.parametrize(
    ("compute", "parameters"), [(None, False), (None, True), ("fp16_amp", False)], ids=["states", "parameters", "fp16"]
)
def test_states_on_disk_update_alike(maker, compute, parameters, tmp_path, monkeypatch):
    # GIVEN a folder for files  WHEN a model is trained with its optimizer's states there
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan = Plan(precision=Precision(compute=compute))
    losses, plain, _ = trained("gpt", plan, maker)
    plan = replace(plan, offload=Offload(optimizer=True, disk=True, parameters=parameters))
    found, updated, optimizer = trained("gpt", plan, maker)
    assert found == losses
    assert all(torch.equal(one, other) for one, other in zip(updated, plain, strict=True))
    # THEN they are in files as large as they are
    states = [s for of_one in optimizer.state.values() for s in of_one.values() if torch.is_tensor(s) and s.numel() > 1]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.stat().st_size for path in files) == sorted(state.nbytes for state in states)
    # AND these go with the optimizer
    del states, optimizer
    gc.collect()
    assert not any(tmp_path.iterdir())


def test_the_host_leaves_out_steps_whose_gradients_overflow():
    # GIVEN a loss whose gradients are too large for float16 at first
    plan = Plan(precision=Precision(compute="fp16_amp"), offload=Offload(optimizer=True))
    model = apply_to_model(nn.Linear(2, 1), plan)
    optimizer = apply_to_optimizer(sgd(model.parameters()), model, plan)
    before = [p.detach().clone() for p in model.parameters()]
    (model(torch.ones(1, 2)).sum() * 1e8).backward()
    optimizer.step()
    # THEN nothing is updated, and the next step is one
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(before[0], model.weight)


def test_gradients_are_clipped_as_ever():
    # GIVEN a loop that clips between backward and step
    def clipped(plan):
        module, model, batch = model_and_batch("mlp")
        optimizer = apply_to_optimizer(sgd(model.parameters()), model, plan)
        loss_of(module, model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        return [p.detach() for p in model.parameters()]

    plain, host = clipped(Plan()), clipped(Plan(offload=Offload(optimizer=True)))
    assert all(torch.equal(one, other) for one, other in zip(plain, host, strict=True))


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        (Plan(optimizer=Optimizer(name="sgd")), UsageError, "holds states of 1 parameters"),
        (Plan(optimizer=Optimizer(kernel="fused")), UsageError, "holds states of 1 parameters"),
        (Plan(offload=Offload(optimizer=True)), UsageError, "holds states of 1 parameters"),
        (Plan(batch=Batch(keep_output=False)), UnsupportedError, "the training loop's own variable"),
    ],
    ids=["name", "kernel", "host", "output"],
)
def test_what_cannot_be_applied_is_said(plan, error, words):
    model = apply_to_model(nn.Linear(2, 1, bias=False), plan)
    optimizer = adamw(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(error, match=words):
        apply_to_optimizer(optimizer, model, plan)


@pytest.mark.parametrize("name", [*OWN, "muon", "galore", "adafactor"])
@pytest.mark.parametrize("in_backward", [False, True])
def test_frozen_parameters_stay_and_have_no_states(name, in_backward):
    # GIVEN a model of which the first layers are frozen, in an optimizer of all
    module, model, batch = model_and_batch("mlp")
    frozen = list(model[0].parameters()) + list(model[2].parameters())
    for p in frozen:
        p.requires_grad_(requires_grad=False)
    before = [p.detach().clone() for p in frozen]
    plan = Plan(optimizer=Optimizer(name=name, in_backward=in_backward))
    optimizer = apply_to_optimizer(adamw(model.parameters()), model, plan)
    for _ in range(2):
        loss_of(module, model, batch).backward()
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(frozen, before, strict=True))
    assert not any(optimizer.state.get(p) for p in frozen)
    assert all(optimizer.state.get(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(optimizer=Optimizer(in_backward=True), batch=Batch(accumulation=2)), "batch.accumulation 2"),
        (Plan(optimizer=Optimizer(in_backward=True), precision=Precision(compute="fp16_amp")), "loss scaling"),
        (Plan(optimizer=Optimizer(in_backward=True), offload=Offload(optimizer=True)), "the host updates"),
        (Plan(optimizer=Optimizer(name="sgd", state="bfloat16")), "sgd has no moments"),
        (Plan(optimizer=Optimizer(name="shampoo", state="float16")), "shampoo has no moments"),
    ],
    ids=["accumulation", "fp16", "host", "sgd", "shampoo"],
)
def test_updates_that_cannot_be_are_refused(plan, words):
    # GIVEN a plan  THEN what cannot go together is said before anything is done, with a way out
    model = nn.Linear(2, 1)
    with pytest.raises(UnsupportedError, match=words) as refused:
        apply_to_optimizer(adamw(model.parameters()), model, plan)
    assert refused.value.hint


def test_optimizers_without_a_kernel_say_so():
    model = nn.Linear(2, 1)
    with pytest.raises(UsageError, match="Adafactor has no kernel fused"):
        apply_to_optimizer(torch.optim.Adafactor(model.parameters()), model, Plan(optimizer=Optimizer(kernel="fused")))
