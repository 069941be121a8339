"""What lies before a real model's blocks and after them."""

from __future__ import annotations

from torch import nn

from dnnmem.profilers.apply.beside_blocks import beside_blocks
from tests.estimator.passes.steps import LLAMA, SIZES, sample


def test_tables_lie_before_blocks_and_heads_after_them():
    model = sample("gpt").make_model(**SIZES, **LLAMA, layers=2)
    before, after = beside_blocks(model)
    assert [type(m) for m in before] == [nn.Embedding]
    assert after == [model.norm, model.head]


def test_what_shares_a_parameter_is_the_models_own():
    # GIVEN a head that is the table
    model = sample("gpt").make_model(**SIZES, layers=2)
    before, after = beside_blocks(model)
    assert before == [model.positions]
    assert after == [model.norm]


def test_without_blocks_there_are_no_sides():
    assert beside_blocks(nn.Sequential(nn.Linear(1, 1), nn.ReLU())) == ([], [])
