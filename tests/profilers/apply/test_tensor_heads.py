"""Modules count a rank's heads, wherever they keep the number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.apply.tensor_heads import divide_heads


class Sizes(NamedTuple):
    """A tuple of numbers."""

    heads: int = 8
    head_dim: int = 4
    layers: int = 8


@dataclass(frozen=True)
class Config:
    """A dataclass of numbers."""

    n_head: int = 8
    n_embd: int = 32


class Attention(nn.Module):
    """Keeps its numbers in three ways."""

    def __init__(self, sizes, config):
        super().__init__()
        self.num_heads, self.head_dim, self.split_size, self.is_causal = 8, 4, 32, True
        self.sizes, self.config = sizes, config
        self.qkv = nn.Linear(32, 96)

    def forward(self, x):
        """A shape that it does not keep."""
        return self.qkv(x).view(x.shape[0], 3, 8, 4)


def test_numbers_of_heads_are_divided_and_shared_objects_stay():
    # GIVEN two modules that share their objects  WHEN the columns of one are split
    sizes, config = Sizes(), Config()
    model = nn.ModuleDict({"a": Attention(sizes, config), "b": Attention(sizes, config)})
    divide_heads(model, {"a.qkv": (32, 32, 32)}, 4)
    # THEN that one counts a quarter of the heads, and nothing else is another number
    a, b = model["a"], model["b"]
    assert (a.num_heads, a.head_dim, a.split_size, a.is_causal) == (2, 4, 8, True)
    assert a.sizes == Sizes(heads=2)
    assert a.config == Config(n_head=2)
    assert (b.num_heads, b.sizes, b.config) == (8, sizes, config)


def test_heads_that_do_not_divide_are_refused():
    model = nn.ModuleDict({"a": Attention(Sizes(), Config())})
    with pytest.raises(UnsupportedError, match=r"a\.num_heads is 8; 8 % tp 3 = 2"):
        divide_heads(model, {"a.qkv": (32, 32, 32)}, 3)


def test_code_that_reshapes_to_all_heads_says_so():
    # GIVEN code with a number of heads in it  WHEN its layer makes a quarter
    model = nn.ModuleDict({"a": Attention(Sizes(), Config())})
    divide_heads(model, {"a.qkv": (32, 32, 32)}, 4)
    model["a"].qkv = nn.Linear(32, 24)
    with pytest.raises(UnsupportedError, match=r"a reshapes to sizes .* under tp 4 a rank has 1 / 4 of its heads"):
        model["a"](torch.ones(2, 32))
