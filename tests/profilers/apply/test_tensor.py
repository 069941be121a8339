"""What tensor parallelism cannot split is refused before anything is changed."""

from __future__ import annotations

import pytest
from torch import nn

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.plan import Mesh, Plan, Tensor
from dnnmem.profilers.apply.tensor import to_model
from sample_models import gpt

SMALL = {"vocab": 96, "context": 16, "width": 32, "layers": 2, "heads": 4}


def test_one_rank_changes_nothing():
    model = nn.Linear(2, 2)
    assert to_model(model, Plan()) is model


def test_a_model_without_pairs_is_refused():
    with pytest.raises(UnsupportedError, match="tp is 2, but Linear has no pair of linear layers"):
        to_model(nn.Linear(2, 2), Plan(mesh=Mesh(tp=2)))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(UnsupportedError, match=r"blocks.0.attention.qkv makes 32 features; 32 % tp 3 = 2"):
        to_model(gpt.make_model(**SMALL), Plan(mesh=Mesh(tp=3)))


def test_what_torch_does_not_do_is_refused():
    with pytest.raises(UnsupportedError, match="gathers again"):
        to_model(gpt.make_model(**SMALL), Plan(mesh=Mesh(tp=2), tensor=Tensor(sequence_parallel=True)))


def test_ranks_must_be_there():
    with pytest.raises(UsageError, match="the plan is for 2 ranks, but there is no process group"):
        to_model(gpt.make_model(**SMALL), Plan(mesh=Mesh(tp=2)))
