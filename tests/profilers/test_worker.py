"""What goes wrong in the child is a message in words: the user's own frames, no more, a way out, an exit code."""

from __future__ import annotations

import json

import pytest

from dnnmem.estimator.errors import DnnmemError, ModelError
from dnnmem.profilers import worker
from dnnmem.profilers.request import Request

MODEL = """
import sys, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return act(self.layer(x))

def make_model():
    return Net()

def make_batch(batch_size):
    return torch.randn(batch_size, 4)

def make_loss(output, batch):
    return output.sum()

def act(x):
"""

LINE = MODEL.count("\n") + 1
FAILING = [
    ("return x @ torch.ones(5, 5)", "mat1 and mat2", "", ModelError, 3),
    ("return x.view(7, -1)", "shape '[7, -1]' is invalid", "", ModelError, 3),
    ("return {}['missing']", "KeyError: 'missing'", "", ModelError, 3),
    ("assert x.shape[0] == 9, 'nine'", "AssertionError: nine", "", ModelError, 3),
    ("return x.no_such", "has no attribute 'no_such'", "", ModelError, 3),
    ("return act(x)", "RecursionError", "", ModelError, 3),
    ("raise MemoryError", "the step ran out of memory", "--device fake", ModelError, 3),
    ("return torch.empty(10**15) + x", "the step ran out of memory", "--device fake", ModelError, 3),
    ("return x.to('cuda')", "", "leave devices to dnnmem", ModelError, 3),
    ("return x + torch.ones(4, device='meta')", "", "", ModelError, 3),
    ("return x.detach()", "the loss needs no gradient", "requires_grad", ModelError, 3),
    ("return torch.nn.functional.embedding(x, x)", "Expected tensor for argument", "", ModelError, 3),
    ("return torch.ones(2)[torch.tensor(5)] * x", "index 5 is out of bounds", "", ModelError, 3),
    ("raise StopIteration", "StopIteration", "", ModelError, 3),
    ("raise Exception(object)", "<class 'object'>", "", ModelError, 3),
    (
        "return x.add_(1).exp_().mul_(2).sqrt_().add_(x.detach().exp_()) if 0 else [][0]",
        "IndexError",
        "",
        ModelError,
        3,
    ),
]


def profile(tmp_path, body, **fields):
    path = tmp_path / "model.py"
    path.write_text(MODEL + f"    {body}\n")
    return worker.profile(Request(**{"target": str(path), "batch_size": 2, "device": "cpu", **fields}), lambda _: None)


@pytest.mark.parametrize(("body", "said", "hint", "kind", "code"), FAILING, ids=range(len(FAILING)))
def test_a_failing_step_is_told_with_the_users_lines(tmp_path, monkeypatch, body, said, hint, kind, code):
    monkeypatch.chdir(tmp_path)
    import torch

    if "cuda" in body and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(DnnmemError) as caught:
        profile(tmp_path, body)
    error = caught.value
    assert type(error) is kind
    assert error.exit_code == code
    assert said in error.message
    assert hint in error.hint
    # THEN the line is the user's, and no frame is ours or torch's
    if "needs no gradient" not in error.message:
        assert f"model.py:{LINE} in act" in error.message
    assert "record.py" not in error.message
    assert "torch/nn" not in error.message
    assert "Traceback" not in error.message


def test_an_operator_that_needs_values_is_unsupported_beyond_a_small_run(tmp_path):
    # GIVEN shapes that depend on values, and no batch size that they are a line in
    body = "return sum(row.relu()[: int(row.sum().abs() * 100) % 3].sum() for row in x) + x[x[:, 0] > 0].sum()"
    with pytest.raises(DnnmemError) as caught:
        profile(tmp_path, body, device="fake", batch_size=64)
    assert caught.value.exit_code == 4
    assert "depends on values that a fake run does not have" in caught.value.message
    assert "cannot be extrapolated" in caught.value.message
    assert "--device cpu" in caught.value.hint


def test_no_number_is_no_error(tmp_path):
    trace, _ = profile(tmp_path, "return x * float('nan')")
    assert trace.ops


@pytest.mark.parametrize("device", ["cuda", "cpu", "fake"])
def test_the_seed_is_what_was_asked(tmp_path, device):
    import torch

    if device == "cuda":
        if torch.cuda.is_available():
            pytest.skip("a GPU is here")
        with pytest.raises(DnnmemError, match="no CUDA device here") as caught:
            profile(tmp_path, "return x", device=device)
        assert caught.value.exit_code == 4
        assert "--device fake" in caught.value.hint
    else:
        trace, _ = profile(tmp_path, "return x", device=device)
        assert trace.origin.device == device
        assert trace.origin.versions["torch"] == torch.__version__


def test_answers_are_files(tmp_path, monkeypatch):
    # GIVEN requests of a good and of a bad target; file descriptors stay as they are
    monkeypatch.setattr(worker.os, "dup2", lambda *_: None)
    path = tmp_path / "model.py"
    path.write_text(MODEL + "    return x\n")
    request = tmp_path / "request.json"
    request.write_text(Request(target=str(path), batch_size=2, device="fake").to_json())
    assert worker.main([str(request), str(tmp_path)]) == 0
    assert (tmp_path / worker.TRACE_FILE).stat().st_size > 100
    assert not (tmp_path / worker.ERROR_FILE).exists()

    request.write_text(Request(target=str(tmp_path / "none.py"), batch_size=2, device="fake").to_json())
    assert worker.main([str(request), str(tmp_path)]) == 2
    said = json.loads((tmp_path / worker.ERROR_FILE).read_text())
    assert said["type"] == "UsageError"
    assert "none.py" in said["message"]


def test_a_fault_of_dnnmem_is_told_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(worker.os, "dup2", lambda *_: None)

    def broken(*_):
        raise ValueError("a fault")

    monkeypatch.setattr(worker, "profile", broken)
    request = tmp_path / "request.json"
    request.write_text(Request(target="model.py").to_json())
    assert worker.main([str(request), str(tmp_path)]) == 5
    said = json.loads((tmp_path / worker.ERROR_FILE).read_text())
    assert (said["type"], said["message"]) == ("InternalError", "ValueError: a fault")
    assert said["hint"].startswith("it happened at test_worker.py:")
    assert "Traceback" not in said["hint"]
    # AND a request that is none is one too
    request.write_text("{")
    assert worker.main([str(request), str(tmp_path)]) == 5
