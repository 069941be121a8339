"""A fake run that values stop becomes small real ones; the report says so, and refuses what is no line in the batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.trace import Kind, Origin
from dnnmem.profilers.devices import SMALL_BATCHES, choose_device, run_on
from dnnmem.profilers.request import Request
from tests.profilers.recorded import begin, loss_step, on_cpu, owned, target_of

TOKENS, WIDTH = 8, 16


class Routed(nn.Module):
    """Two experts; the router sends each token to where `nonzero` finds it, here always half of them."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x):
        tokens = x.flatten(0, 1)
        score = self.router(tokens).softmax(-1).sum(-1) + torch.arange(len(tokens)) % 2  # 1 or 2, but who knows
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            (rows,) = torch.where((score > 1.5) == bool(i))
            out = out.index_add(0, rows, expert(tokens[rows]))
        return out.view_as(x)


class ByTheRow(nn.Linear):
    """A loop over the batch, so that the operators are as many as it has rows."""

    def forward(self, x):
        x = super().forward(x)
        x = x[(x > -1e9).all(-1).all(-1)]
        for row in x:
            x = x + row.exp()
        return x


def sequences(batch_size):
    return torch.randn(batch_size, TOKENS, WIDTH)


def target(make_model, batch_size):
    step = loss_step(lambda model, batch: model(batch).pow(2).mean())
    return target_of(make_model, sequences, step, batch_size=batch_size)


def run_fake(make_model, batch_size):
    request = Request(target="test", batch_size=batch_size, device="fake", steps=2, repeats=1)
    begin()
    return run_on(
        "fake", target(make_model, batch_size), request, Origin(device="fake", notes=("first",)), lambda _: None
    )


def test_routing_is_extrapolated_from_real_runs():
    # GIVEN a mixture of experts that reads its routes back
    trace, measured = run_fake(Routed, 32)
    torch.manual_seed(0)
    real = on_cpu(target(Routed, 32)).trace
    # THEN the trace is that of a real run of the batch
    trace.check()
    assert trace.peak_bytes() == real.peak_bytes()
    assert [op.name for op in trace.ops] == [op.name for op in real.ops]
    assert [e.nbytes for _, e in trace.events()] == [e.nbytes for _, e in real.events()]
    assert owned(trace, Kind.OPTIMIZER) == owned(real, Kind.OPTIMIZER) == 2 * 2 * (WIDTH + 1) * WIDTH * 4
    assert trace.batch == {"batch_size": 32}
    # AND the notes say how it came about; times of other sizes are none
    assert trace.origin.notes[0] == "first"
    assert "depends on values that a fake run does not have: extrapolated from real CPU runs" in trace.origin.notes[1]
    assert "batches 2, 4, 6 (largest residual 0.0%)" in trace.origin.notes[1]
    assert {op.seconds for op in trace.ops} == {None}
    assert measured.allocated_bytes is None


@pytest.mark.parametrize("batch_size", [1, max(SMALL_BATCHES)])
def test_a_small_batch_really_runs(batch_size):
    trace, measured = run_fake(Routed, batch_size)
    assert any(note.endswith("the step was really run on the CPU instead") for note in trace.origin.notes)
    assert measured.allocated_bytes >= trace.peak_bytes()
    assert any(s.shape[:1] == (batch_size,) for s in trace.storages.values() if s.kind is Kind.INPUT)


def test_what_is_no_line_in_the_batch_is_refused():
    with pytest.raises(UnsupportedError) as caught:
        run_fake(partial(ByTheRow, WIDTH, WIDTH), 16)
    error = caught.value
    assert error.exit_code == 4
    assert "aten.nonzero.default depends on values" in error.message
    assert "real runs at batches (2, 4, 6) cannot be extrapolated" in error.message
    assert error.hint == "use --device cpu with the batch size itself, or --device cuda"


def test_each_device_is_served_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [choose_device(name) for name in ("auto", "fake", "cpu")] == ["fake", "fake", "cpu"]
    with pytest.raises(UnsupportedError, match="no CUDA device here") as caught:
        choose_device("cuda")
    assert "--device fake" in caught.value.hint
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == "cuda"


@pytest.mark.parametrize("device", ["cpu", "fake"])
def test_progress_is_told(device):
    steps = []
    request = Request(target="test", batch_size=2, device=device, steps=2, repeats=2)
    trace, measured = run_on(device, target(lambda: nn.Linear(WIDTH, 4), 2), request, Origin(), steps.append)
    assert steps == list(range(len(steps)))
    assert len(steps) >= 2
    assert (measured.step_seconds is not None) == (device == "cpu")
    assert any(op.seconds is not None for op in trace.ops) == (device == "cpu")
