"""What each storage is for, whatever way the model is trained: tied, frozen, averaged, kept and leaked ones."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from dnnmem.estimator.layers import layers
from dnnmem.estimator.trace import Kind, Phase
from dnnmem.profilers.kinds import kind_of, parameter_names
from dnnmem.profilers.record import Block
from tests.profilers.recorded import loss_step, on_cpu, on_fake, owned, target_of, watched, zoo_fake

MIB = 2**20


def numbers(batch_size):
    return {"x": torch.randn(batch_size, 8), "rest": [torch.randn(batch_size, 2)]}


def loss(model, batch):
    return model(batch["x"]).pow(2).sum()


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 4))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


BOTH = pytest.mark.parametrize("record", [on_fake, on_cpu])


@BOTH
def test_owners_are_named(record):
    trace = record(target_of(mlp, numbers, loss_step(loss))).trace
    names = {(s.kind.value, ".".join(s.module), s.name) for s in trace.storages.values() if s.nbytes > 4}
    assert ("param", "0", "weight") in names
    assert ("grad", "3", "bias") in names
    assert ("optimizer", "0", "weight.exp_avg") in names
    assert ("buffer", "2", "running_mean") in names
    assert {("input", "", "x"), ("input", "", "rest.0")} <= names
    assert owned(trace, Kind.INPUT) == 4 * (8 + 2) * 4


def test_a_tied_weight_is_one_parameter_of_its_first_owner():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = Tied()
    assert parameter_names(model) == {id(model.a.weight): (("a",), "weight")}
    trace = on_fake(target_of(Tied, numbers, loss_step(loss))).trace
    rows = {row.module: row for row in layers(trace)}
    assert rows["a"].param_bytes == rows["a"].grad_bytes == 256
    assert rows["a"].optimizer_bytes == 512
    assert rows["b"].param_bytes == rows["b"].grad_bytes == 0


def test_frozen_weights_have_neither_gradient_nor_state():
    # GIVEN LoRA: 2 layers frozen, with their low-rank changes trained
    trace = zoo_fake("lora").trace
    frozen = {s.module for s in trace.storages.values() if s.kind is Kind.PARAM and s.module[-1] == "base"}
    assert frozen == {("0", "base"), ("2", "base"), ("4", "base")}
    for kind in (Kind.GRAD, Kind.OPTIMIZER):
        assert not [s for s in trace.storages.values() if s.kind is kind and s.module[-1] == "base"]


@BOTH
def test_an_average_outside_the_model_is_a_buffer(record):
    averages = []

    def step(model, batch, optimizer):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if not averages:
            averages.append(copy.deepcopy(model))
        with torch.no_grad():
            for mean, now in zip(averages[0].parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 0.1)

    trace, measured = record(target_of(lambda: nn.Linear(8, 64), numbers, step, sgd), steps=3)
    assert measured.growth_bytes == 0
    assert owned(trace, Kind.BUFFER) == (8 * 64 + 64) * 4


def test_what_is_found_between_steps_is_no_operators_work():
    # GIVEN a tensor that the loop makes and fills out of the recorder's sight
    kept = []

    def step(model, batch, optimizer):
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        kept[:] = [torch.from_numpy(np.ones((3, 5), np.float32))]

    trace = watched(target_of(lambda: nn.Linear(8, 64), numbers, step, sgd))
    (found,) = [s for s in trace.storages.values() if s.nbytes == 60]
    assert (found.kind, found.name, found.shape) == (Kind.BUFFER, "", (3, 5))
    assert found.id in trace.pinned


@BOTH
def test_gradients_kept_over_the_step_are_pinned(record):
    def step(model, batch, optimizer):
        optimizer.zero_grad(set_to_none=False)
        loss(model, batch).backward()
        optimizer.step()

    trace = record(target_of(mlp, numbers, step)).trace
    gradients = {s.id for s in trace.storages.values() if s.kind is Kind.GRAD}
    assert gradients <= trace.pinned
    assert owned(trace, Kind.GRAD) == owned(trace, Kind.PARAM)
    # THEN no event touches them
    assert not gradients & {event.storage for _, event in trace.events()}


@BOTH
def test_gradients_forgotten_at_the_top_are_made_again(record):
    # GIVEN the usual loop: zero_grad first
    def step(model, batch, optimizer):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()

    trace, measured = record(target_of(mlp, numbers, step))
    trace.check()
    assert measured.growth_bytes == 0
    gradients = {s.id for s in trace.storages.values() if s.kind is Kind.GRAD}
    # THEN they are pinned, freed, and allocated again under the same names
    assert gradients <= trace.pinned
    signs = [(event.nbytes > 0) for _, event in trace.events() if event.storage in gradients]
    assert signs == [False] * len(gradients) + [True] * len(gradients)
    assert owned(trace, Kind.GRAD) == owned(trace, Kind.PARAM)


@BOTH
def test_accumulated_gradients_are_made_once(record):
    def step(model, batch, optimizer):
        for _ in range(3):
            loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    trace = record(target_of(lambda: nn.Sequential(OrderedDict(layer=nn.Linear(8, 4))), numbers, step, sgd)).trace
    made = [e.storage for _, e in trace.events() if e.nbytes > 0 and trace.storages[e.storage].kind is Kind.GRAD]
    assert len(made) == 2
    # AND the sums are their owner's
    sums = [(op.module, op.phase) for op in trace.ops if op.name == "aten.add_.Tensor" and op.phase is not Phase.STEP]
    assert sums == [(("layer",), Phase.BACKWARD)] * 4


@BOTH
def test_a_leak_is_growth(record):
    # GIVEN a loop that keeps every loss with its graph
    kept = []

    def step(model, batch, optimizer):
        value = loss(model, batch)
        value.backward(retain_graph=True)
        kept.append(value)
        optimizer.step()
        optimizer.zero_grad()

    trace, measured = record(target_of(lambda: nn.Linear(8, 256), numbers, step, sgd), steps=3)
    # THEN each step leaves at least its output (4, 256) and the loss
    assert measured.growth_bytes >= 4 * 256 * 4 + 4
    trace.check()


@BOTH
@pytest.mark.parametrize("keeps_result", [torch.exp, torch.relu_, torch.sigmoid, lambda x: x.softmax(-1)])
def test_what_is_never_differentiated_does_not_stay(record, keeps_result):
    # GIVEN probabilities for a log, whose graph no backward ever frees, and whose node keeps its own result
    def step(model, batch, optimizer):
        keeps_result(model(batch["x"])).detach().sum()
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    trace, measured = record(target_of(lambda: nn.Linear(8, 256), numbers, step, sgd), steps=3)
    assert measured.growth_bytes == 0
    # THEN it has died before backward begins
    made = next(op.writes[-1] for op in trace.ops if op.name not in {"aten.addmm.default", "dnnmem.begin"})
    dying = next(op.phase for op in trace.ops if made in op.frees)
    assert dying is Phase.FORWARD


@BOTH
def test_a_cache_that_is_replaced_is_no_growth(record):
    cache = {}

    def step(model, batch, optimizer):
        cache["last"] = model(batch["x"]).detach()
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    trace, measured = record(target_of(lambda: nn.Linear(8, 256), numbers, step, sgd), steps=3)
    assert measured.growth_bytes == 0
    assert owned(trace, Kind.BUFFER) == 4 * 256 * 4


@pytest.mark.parametrize(("options", "counter"), [({}, 0), ({"fused": True}, 4), ({"foreach": True}, 0)])
def test_step_counters_stay_on_the_host_unless_fused(options, counter):
    trace = on_fake(target_of(mlp, numbers, loss_step(loss), partial(torch.optim.AdamW, lr=1e-3, **options))).trace
    count = len([s for s in trace.storages.values() if s.kind is Kind.PARAM])
    assert owned(trace, Kind.OPTIMIZER) == 2 * owned(trace, Kind.PARAM) + counter * count


def test_grad_scaler_is_a_buffer_of_two_numbers():
    trace = zoo_fake("grad_scaler").trace
    scalars = [s for s in trace.storages.values() if s.kind is Kind.BUFFER and s.nbytes == 4 and s.id in trace.pinned]
    assert len(scalars) == 2


def test_autocast_copies_are_activations_or_temporaries():
    trace = zoo_fake("grad_scaler").trace
    copies = [s for s in trace.storages.values() if s.dtype == "bfloat16" and s.name == "aten._to_copy.default"]
    assert copies
    assert {s.kind for s in copies} <= {Kind.ACTIVATION, Kind.TEMP}


def test_an_op_that_saves_nothing_makes_temporaries():
    class Plain(nn.Linear):
        def forward(self, x):
            return super().forward(x) + super().forward(x)

    trace = on_fake(target_of(lambda: Plain(8, 64), numbers, loss_step(loss), sgd)).trace
    products = [s for s in trace.storages.values() if s.name == "aten.addmm.default"]
    assert {s.kind for s in products} == {Kind.TEMP}
    assert not any(s.saved for s in products)


@pytest.mark.parametrize(
    ("phase", "saved", "outlives", "expected"),
    [
        (None, False, False, Kind.BUFFER),
        (Phase.FORWARD, True, False, Kind.ACTIVATION),
        (Phase.FORWARD, False, True, Kind.ACTIVATION),
        (Phase.FORWARD, False, False, Kind.TEMP),
        (Phase.BACKWARD, True, False, Kind.ACTIVATION),
        (Phase.BACKWARD, False, True, Kind.TEMP),
        (Phase.STEP, True, False, Kind.TEMP),
    ],
)
def test_kinds_by_rule(phase, saved, outlives, expected):
    block = Block(4, (1,), "float32", 0, saved=saved)
    assert kind_of(block, phase=phase, outlives_forward=outlives) is expected
    # AND a name goes first
    block.kind = Kind.PARAM
    assert kind_of(block, phase=phase, outlives_forward=outlives) is Kind.PARAM
