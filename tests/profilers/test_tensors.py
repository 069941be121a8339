"""Tensors are found and changed wherever a batch holds them, and the original stays as it is."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dnnmem.profilers.tensors import map_tensors, tensors_in


class Pair(NamedTuple):
    image: torch.Tensor
    label: int


@dataclass
class Batch:
    x: torch.Tensor
    extra: dict[str, torch.Tensor]
    name: str


def shape(tensor):
    return tuple(tensor.shape)


def test_operator_arguments_are_searched_in_order():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert [shape(t) for t in tensors_in((a, [b, None, (c,)], 3, "x"))] == [(1,), (2,), (3,)]
    assert list(tensors_in(())) == []


def test_containers_keep_their_kind():
    one = torch.ones(1)
    changed = map_tensors({"a": [one, 3], "b": (one, None), "c": Pair(one, 4), "d": OrderedDict(e=one)}, shape)
    assert changed == {"a": [(1,), 3], "b": ((1,), None), "c": Pair((1,), 4), "d": OrderedDict(e=(1,))}
    assert isinstance(changed["c"], Pair)


def test_plain_objects_are_copied():
    batch = Batch(torch.ones(2), {"mask": torch.ones(3)}, "train")
    changed = map_tensors(batch, lambda t: t * 2)
    assert changed.x.tolist() == [2, 2]
    assert changed.extra["mask"].tolist() == [2, 2, 2]
    assert changed.name == "train"
    # THEN the original is what it was
    assert batch.x.tolist() == [1, 1]
    assert batch.extra["mask"].tolist() == [1, 1, 1]


def test_classes_and_values_are_left_alone():
    assert map_tensors(Batch, shape) is Batch
    assert map_tensors("text", shape) == "text"
    assert map_tensors(None, shape) is None
    assert map_tensors(torch.ones(4), shape) == (4,)
