"""A fake run takes the paths of a real one, says what it assumed, and names the operator that needs values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer
from torch.utils import _foreach_utils

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.faking import DataDependentError, Faking
from tests.profilers.recorded import loss_step, on_fake, step_of, target_of


def numbers(batch_size):
    return torch.randn(batch_size, 8)


def total(model, batch):
    return model(batch).sum()


def test_nothing_is_allocated():
    # GIVEN a model of 4 TB
    trace = step_of(lambda: nn.Linear(1_000_000, 1_000_000), total, lambda n: torch.zeros(1).expand(n, 1_000_000))
    assert trace.peak_bytes() > 4 * 4 * 10**12


def test_a_copied_model_stays_in_the_same_mode():
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.now = nn.Linear(8, 8)
            self.mean = copy.deepcopy(self.now)

        def forward(self, x):
            return self.now(x) - self.mean(x)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *args, **_: pytest.fail(str(args)))
        step_of(Averaged, total, numbers).check()


def test_foreach_optimizers_take_their_foreach_path():
    def foreach(parameters):
        return torch.optim.AdamW(parameters, foreach=True)

    trace = step_of(lambda: nn.Linear(8, 8), total, numbers, foreach)
    assert "aten._foreach_addcmul_.Scalar" in {op.name for op in trace.ops}
    # THEN torch's lists are as before
    assert FakeTensor not in _foreach_utils._foreach_supported_types
    assert FakeTensor not in optimizer._foreach_supported_types


def test_torchs_lists_are_as_before_after_an_error():
    def broken(_model, _batch, _optimizer):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        on_fake(target_of(lambda: nn.Linear(8, 8), numbers, broken))
    assert FakeTensor not in _foreach_utils._foreach_supported_types


def test_what_was_assumed_is_said_and_counted():
    def step(model, batch, optimizer):
        loss = total(model, batch)
        loss.backward()
        if not torch.isfinite(loss):
            raise ValueError("overflow")
        optimizer.step()

    notes = on_fake(target_of(lambda: nn.Linear(8, 8), lambda n: torch.randn(n * 1000, 8), step)).trace.origin.notes
    assert any("neither infinite nor NaN" in note for note in notes)

    def reads(model, batch, optimizer):
        loss = total(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    notes = on_fake(
        target_of(lambda: nn.Linear(8, 8), lambda n: torch.randn(n * 1000, 8), reads), steps=3
    ).trace.origin.notes
    assert "a float32 that the program reads back is taken as 0.0 (3 times)" in notes


@pytest.mark.parametrize(("trained", "notes"), [(True, 1), (False, 0)])
def test_trainable_parameters_without_a_gradient_are_named(trained, notes):
    # GIVEN a part of a model that its forward pass leaves out
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.left = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(trained)

        def forward(self, x):
            return self.used(x)

    told = [note for note in step_of(Halves, total, numbers).origin.notes if "no gradient" in note]
    assert len(told) == notes
    assert all("left.weight, left.bias, which" in note for note in told)


@pytest.mark.parametrize(
    ("needs", "operator"),
    [
        (lambda x: x[(x > 0).any(1)].sum(), "aten.nonzero.default"),
        (lambda x: x[: int(x.argmax())].sum(), "aten._local_scalar_dense.default"),
        (lambda x: x.masked_select(x > 0).sum(), "aten.masked_select.default"),
        (lambda x: x.abs().long().unique().sum() + x.sum(), "aten._unique2.default"),
    ],
)
def test_a_shape_that_hangs_on_values_names_its_operator(needs, operator):
    with pytest.raises(DataDependentError) as caught:
        step_of(lambda: nn.Linear(8, 8), lambda model, batch: needs(model(batch)), lambda n: torch.randn(n * 1000, 8))
    error = caught.value
    assert error.operator == operator
    assert error.message == f"{operator} depends on values that a fake run does not have"
    assert "--device cpu" in error.hint
    assert error.exit_code == 4


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules_are_refused_before_they_crash(whole):
    def make_model():
        inner = torch.compile(nn.Linear(8, 8), backend="eager")
        return inner if whole else nn.Sequential(nn.Linear(8, 8), inner)

    with pytest.raises(UnsupportedError, match=r"is compiled \(torch.compile\), which the fake device cannot run"):
        step_of(make_model, total, numbers)


def test_masks_of_small_batches_are_true():
    # GIVEN code that drops padding where there is any
    def masked(model, batch):
        keep = batch["mask"].bool()
        x = batch["x"] if keep.all() else batch["x"][keep]
        return model(x).sum()

    def padded(count):
        return lambda n: {"x": torch.randn(n, 6, 8), "mask": (torch.arange(6) < count).long().expand(n, 6)}

    rows = [step_of(lambda: nn.Linear(8, 5), masked, padded(count)) for count in (6, 4)]
    outputs = [s.shape for t in rows for s in t.storages.values() if s.name == "aten.addmm.default"]
    assert (24, 5) in outputs
    assert (16, 5) in outputs


def test_weights_need_no_mode_of_their_own():
    # GIVEN a target that keeps a real constant beside the model
    constant = torch.ones(8)
    trace = on_fake(target_of(lambda: nn.Linear(8, 8), numbers, loss_step(lambda m, b: (m(b) * constant).sum()))).trace
    trace.check()


@pytest.mark.parametrize("convert", ["bfloat16", "half", "double", "float", "cpu"])
def test_models_are_converted_as_usual(convert):
    # GIVEN a model that is converted after it was made
    def converted():
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        return getattr(model, convert)()

    dtype = converted()[0].weight.dtype
    trace = step_of(converted, total, lambda n: torch.randn(n, 8, dtype=dtype))
    weights = {(s.dtype, s.nbytes) for s in trace.storages.values() if s.name == "weight" and s.shape == (8, 8)}
    assert weights == {(str(dtype).removeprefix("torch."), 64 * dtype.itemsize)}


def test_a_conversion_by_to_keeps_ties_and_freezing():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.c.requires_grad_(requires_grad=False)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    trace = step_of(lambda: Tied().to(torch.bfloat16), total, lambda n: torch.randn(n, 8, dtype=torch.bfloat16))
    names = sorted((s.module, s.name, s.kind.value) for s in trace.storages.values() if s.name in {"weight", "bias"})
    found = [(*module, name, kind) for module, name, kind in names if kind == "param"]
    assert found == [("a", "bias", "param"), ("a", "weight", "param"), ("b", "bias", "param"),
                     ("c", "bias", "param"), ("c", "weight", "param")]  # fmt: skip
    assert not [name for module, name, kind in names if kind == "grad" and module == ("c",)]


def test_lengths_of_ctc_may_be_numbers():
    def program():
        x, targets = torch.randn(50, 4, 30, requires_grad=True), torch.randint(1, 30, (4, 20))
        loss = nn.functional.ctc_loss(x.log_softmax(-1), targets, (50,) * 4, [3, 20, 5, 7])
        loss.backward()
        return loss.shape, x.grad.shape

    with Faking(None).active():
        found = program()
    assert found == ((), (50, 4, 30)) == program()
