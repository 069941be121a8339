"""Every operator belongs somewhere: phase, module and line, in forward, backward, recomputation and the update."""

from __future__ import annotations

import linecache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dnnmem.estimator.trace import Phase
from dnnmem.profilers.modules import LOSS, OPTIMIZER, ModuleTracker, short_path
from tests.profilers.recorded import loss_step, on_cpu, on_fake, ops_named, step_of, target_of, zoo_fake

MM, ADDMM, TANH_BACKWARD = "aten.mm.default", "aten.addmm.default", "aten.tanh_backward.default"


def numbers(batch_size):
    return torch.randn(batch_size, 8)


def total(model, batch):
    return model(batch).sum()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.blocks = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8), nn.Tanh()])

    def forward(self, x):
        x = self.first(x).tanh()
        for block in self.blocks:
            x = block(x)
        return x


def places(trace, name, phase=None):
    return [op.module for op in ops_named(trace, name) if phase in {None, op.phase}]


def test_forward_and_backward_of_a_module_are_its_own():
    trace = step_of(Net, total, numbers)
    assert places(trace, ADDMM) == [("first",), ("blocks", "0")]
    # THEN tanh by hand is the net's, and backward runs in reverse
    assert places(trace, "aten.tanh.default") == [(), ("blocks", "1")]
    assert places(trace, TANH_BACKWARD) == [("blocks", "1"), ()]
    assert places(trace, MM, Phase.BACKWARD) == [("blocks", "0"), ("blocks", "0"), ("first",)]


class ByMethod(nn.Module):
    """Its blocks have a method of their own: torch never calls the first."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Net(), Net()])

    def forward(self, x):
        return self.blocks[1](self.blocks[0].first(x))


def test_what_is_around_calls_and_never_called_is_known():
    modules = step_of(ByMethod, total, numbers).modules
    uncalled = [".".join(m.path) for m in modules if not m.called]
    assert uncalled == ["blocks", "blocks.0", "blocks.1.blocks"]


def test_a_module_used_twice_keeps_its_path():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.alias = self.layer

        def forward(self, x):
            return self.alias(self.layer(x).tanh())

    trace = step_of(Twice, total, numbers)
    assert places(trace, ADDMM) == [("layer",), ("layer",)]
    assert set(places(trace, MM, Phase.BACKWARD)) == {("layer",)}


def test_code_outside_modules_is_the_loss():
    trace = step_of(Net, lambda model, batch: F.mse_loss(model(batch).exp(), batch), numbers)
    assert places(trace, "aten.exp.default") == [LOSS]
    assert places(trace, "aten.mse_loss_backward.default") == [LOSS]
    (seed,) = ops_named(trace, "aten.ones_like.default")
    assert (seed.module, seed.phase) == (LOSS, Phase.BACKWARD)


def test_a_loss_module_is_the_loss():
    # GIVEN a criterion that is no part of the model
    criterion = nn.SmoothL1Loss()
    trace = step_of(Net, lambda model, batch: criterion(model(batch), batch), numbers)
    assert places(trace, "aten.smooth_l1_loss.default") == [LOSS]


def test_clipping_and_averaging_are_the_update():
    def step(model, batch, optimizer):
        total(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.999)
        optimizer.zero_grad()

    trace = on_fake(target_of(Net, numbers, step)).trace
    names = {"aten.linalg_vector_norm.default", "aten._foreach_norm.Scalar", "aten.clamp.default", "aten.mul_.Tensor"}
    updates = [op for op in trace.ops if op.name in names]
    assert updates
    assert {(op.module, op.phase) for op in updates} == {(OPTIMIZER, Phase.STEP)}


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_belongs_to_its_module(reentrant):
    class Saving(Net):
        def forward(self, x):
            x = self.first(x)
            return checkpoint(lambda y: self.blocks[1](self.blocks[0](y)), x, use_reentrant=reentrant)

    trace = step_of(Saving, total, lambda n: torch.randn(n, 8))
    # THEN forward runs twice, the second time within backward, and gradients are the modules' too
    twice = [op for op in ops_named(trace, ADDMM) if op.module == ("blocks", "0")]
    assert [op.phase for op in twice] == [Phase.FORWARD, Phase.BACKWARD]
    assert places(trace, TANH_BACKWARD) == [("blocks", "1")]
    assert set(places(trace, MM, Phase.BACKWARD)) == {("blocks", "0"), ("first",)}


def test_a_custom_function_belongs_to_its_module_both_ways():
    trace = zoo_fake("custom_function").trace
    mine = {op.module for op in trace.ops if op.name == "aten.sigmoid.default"}
    phases = {op.phase for op in trace.ops if op.name == "aten.sigmoid.default"}
    assert mine == {()}
    assert phases == {Phase.FORWARD, Phase.BACKWARD}


def test_backward_through_backward_is_backward():
    # GIVEN a penalty on the norm of the gradient: a graph of the gradient itself
    def penalised(model, batch):
        x = batch.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return gradient.norm()

    for record in (on_fake, on_cpu):
        trace = record(target_of(Net, numbers, loss_step(penalised))).trace
        trace.check()
        assert {op.module for op in ops_named(trace, TANH_BACKWARD)} == {("blocks", "1"), ()}


def test_lines_point_into_the_users_file(tmp_path):
    # GIVEN a model in a file of its own
    path = tmp_path / "their_model.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        hidden = super().forward(x)\n"
        "        return torch.nn.functional.gelu(hidden)\n"
    )
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)  # noqa: S102  # what an import does
    linecache.checkcache()
    trace = step_of(lambda: space["Net"](8, 8), total, numbers)
    lines = {op.name: op.source for op in trace.ops}
    assert lines[ADDMM] == f"{path}:4"
    assert lines["aten.gelu.default"] == f"{path}:5"
    # THEN backward has the line of its forward
    assert lines["aten.gelu_backward.default"] == f"{path}:5"
    # AND the class is found where it is defined
    assert trace.modules[0].type == "Net"


def test_paths_are_short(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "a" / "model.py")) == "a/model.py"
    assert short_path("/venv/lib/python3.12/site-packages/timm/models/vit.py") == "timm/models/vit.py"
    assert short_path("/elsewhere/model.py") == "/elsewhere/model.py"


def test_hooks_are_gone_afterwards():
    hooks = nn.modules.module
    before = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    with ModuleTracker(Net()) as tracker:
        assert len(hooks._global_forward_hooks) == before[0] + 1
        assert tracker.place().module == LOSS
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == before


def test_an_error_in_a_module_leaves_the_stack_as_it_was():
    # GIVEN a model that catches the error of one of its parts
    class Part(nn.Module):
        def forward(self, x):
            raise ValueError(str(x.shape))

    class Careful(Net):
        def __init__(self):
            super().__init__()
            self.part = Part()

        def forward(self, x):
            try:
                return self.part(x)
            except ValueError:
                return self.first(x).exp()

    trace = step_of(Careful, total, numbers)
    assert places(trace, "aten.exp.default") == [()]


def scaled_step(model, batch, optimizer):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(batch).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def test_what_a_scaler_does_after_the_backward_pass_is_of_the_update():
    # GIVEN a loop with a scaler of losses  WHEN it is recorded
    trace = on_fake(target_of(Net, numbers, scaled_step)).trace
    # THEN its look at the gradients and its new scale are no part of the next forward pass
    assert {op.phase for op in ops_named(trace, "aten._amp_update_scale_.default")} == {Phase.STEP}
    last = max(k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD)
    assert last < min(k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD)
