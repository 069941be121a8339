"""Any code's peak, by what its tensors hold; and whose it is, whichever models it calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.cpu import peak_rise
from dnnmem.profilers.faking import Faking
from dnnmem.profilers.measure import measuring


def _train(model: nn.Module, batch: int = 8) -> None:
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    for _ in range(2):
        nn.MSELoss()(model(torch.ones(batch, 32)), torch.ones(batch, 32)).backward()
        optimizer.step()
        optimizer.zero_grad()


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))


def test_the_peak_is_what_is_alive_at_once() -> None:
    with measuring("it", device="cpu") as found:
        a = torch.ones(256)
        b = torch.ones(512)
        del a
        c = torch.ones(128)
        del b, c
    assert found.entry.allocated_bytes == (256 + 512) * 4


@pytest.mark.parametrize("batch", [1, 64])
def test_it_is_what_torchs_own_profiler_sees(batch: int) -> None:
    # GIVEN training from scratch  WHEN it is measured with and without a recorder  THEN the peaks are equal
    with measuring("it", device="cpu") as found:
        _train(_model(), batch)
    assert found.entry.allocated_bytes == pytest.approx(peak_rise(lambda: _train(_model(), batch)), abs=64)


def test_fakes_need_what_real_tensors_do() -> None:
    with measuring("it", device="cpu") as real:
        _train(_model())
    faking = Faking(None)
    with faking.active(), measuring("it", device="fake", faking=faking) as fake:
        _train(_model())
    assert fake.entry.modules == real.entry.modules
    assert fake.entry.allocated_bytes == real.entry.allocated_bytes


def test_a_model_from_before_counts_from_the_beginning() -> None:
    model = _model()
    with measuring("it", device="cpu") as found, torch.no_grad():
        model(torch.ones(1, 32))
    assert found.entry.modules["0", "param"] == found.entry.modules["2", "param"] == (32 * 32 + 32) * 4


def test_several_models_are_told_apart() -> None:
    # GIVEN two models of a kind and a loss  WHEN all run
    with measuring("it", device="cpu") as found:
        student, teacher, third = _model(), _model(), _model()
        y = student(torch.ones(4, 32)) + teacher(torch.ones(4, 32)) + third(torch.ones(4, 32))
        nn.MSELoss()(y, torch.ones(4, 32)).backward()
    # THEN the first one's paths are bare
    params = sorted(module for module, kind in found.entry.modules if kind == "param")
    assert params == ["0", "2", "Sequential.0", "Sequential.2", "Sequential_2.0", "Sequential_2.2"]


def test_blocks_nest() -> None:
    with measuring("outer", device="cpu") as outer:
        a = torch.ones(256)
        with measuring("inner", device="cpu") as inner:
            b = torch.ones(128)
        del a, b
    assert (outer.entry.allocated_bytes, inner.entry.allocated_bytes) == ((256 + 128) * 4, 128 * 4)


def test_code_that_fails_is_not_measured() -> None:
    def fail() -> None:
        torch.ones(256)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), measuring("it", device="cpu") as found:
        fail()
    assert found.entry.allocated_bytes == 0


def test_a_real_model_in_a_fake_run_is_refused() -> None:
    model, faking = _model(), Faking(None)
    with (
        pytest.raises(UsageError, match="built outside of the fake run"),
        faking.active(),
        measuring("it", device="fake", faking=faking),
    ):
        model(torch.ones(1, 32))
