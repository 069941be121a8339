"""Many requests in one child process: each has its own answer, and one that dies takes no other with it."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import ModelError, UsageError
from dnnmem.estimator.trace_file import load_trace
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.run_many import run_many

MODEL = """
import os, torch
def make_model(width: int = 8, fatal: bool = False):
    if fatal:
        os._exit(7)
    return torch.nn.Linear(width, 3)
def make_batch(batch_size, width: int = 8):
    return torch.randn(batch_size, width), torch.randint(3, (batch_size,))
def make_loss(output, batch):
    return torch.nn.functional.cross_entropy(output, batch[1])
"""


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return str(path)


def test_one_failure_and_one_death_cost_no_other_request_its_answer(target, tmp_path):
    # GIVEN requests of which one names an argument that there is not, and one ends its process
    kinds = [{"width": "4"}, {"depth": "2"}, {"fatal": "true"}, {"width": "16"}]
    requests = [Request(target=target, args=args, batch_size=2, device="fake") for args in kinds]
    folder = tmp_path / "answers"
    folder.mkdir()
    # WHEN all are run
    answers = dict(run_many(requests, folder))
    # THEN each has its own answer, and a trace is the one that it has alone
    assert sorted(answers) == [0, 1, 2, 3]
    assert isinstance(answers[1], UsageError)
    assert isinstance(answers[2], ModelError)
    assert "exit code 7" in answers[2].message
    assert load_trace(answers[0])[0].batch["width"] == 4
    assert load_trace(answers[3]) == run(requests[3])
