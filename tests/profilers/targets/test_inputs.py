"""`--input` makes the tensors that it describes, at any batch size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.targets.inputs import check_inputs, make_inputs, parse_input, with_batch_dimension

SHAPES = st.lists(st.one_of(st.integers(1, 99).map(str), st.sampled_from("BS")), min_size=1, max_size=4).map(",".join)


@given(
    shape=SHAPES,
    dtype=st.sampled_from(["float32", "int64", "bool"]),
    values=st.integers(0, 9),
    name=st.sampled_from(["", "x="]),
)
def test_an_input_is_written_as_it_is_read(shape, dtype, values, name):
    spec = parse_input(f"{name}{shape}:{dtype}:{values}")
    assert parse_input(spec.text()) == spec


@pytest.mark.parametrize(
    ("text", "dtype", "low", "high"),
    [
        ("64", torch.float32, -9, 9),
        ("64:bf16", torch.bfloat16, -9, 9),
        ("64:torch.half", torch.float16, -9, 9),
        ("64:int64", torch.int64, 0, 0),
        ("64:int32:5", torch.int32, 0, 4),
        ("64:bool", torch.bool, 1, 1),
    ],
)
def test_an_input_has_its_type_and_its_values(text, dtype, low, high):
    (tensor,) = make_inputs((parse_input(text),), batch_size=64, seq_len=None)
    assert tensor.dtype is dtype
    assert tensor.shape == (64,)
    assert low <= tensor.to(torch.float32).min()
    assert tensor.to(torch.float32).max() <= high


def test_names_make_a_dict_and_sizes_follow_the_letters():
    specs = (parse_input("ids=B,S:int64:9"), parse_input("mask=B,1,S:bool"))
    made = make_inputs(specs, batch_size=2, seq_len=5)
    assert {name: tuple(t.shape) for name, t in made.items()} == {"ids": (2, 5), "mask": (2, 1, 5)}


def test_first_dimensions_of_the_batch_size_follow_it_and_others_stay():
    specs = (parse_input("8,3"), parse_input("3,3"), parse_input("8"))
    batch_size = check_inputs(specs, batch_size=None, seq_len=None)
    made = make_inputs(with_batch_dimension(specs, batch_size), batch_size=2, seq_len=None)
    assert [tuple(t.shape) for t in made] == [(2, 3), (3, 3), (2,)]


@pytest.mark.parametrize("text", ["", ":fp32", "8,", "8,-1", "8,3:fp32:4:5", "8,3:int64:x", "2x=8,3", "a b=8"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    assert "--input" in caught.value.hint


def test_a_name_given_twice_is_refused():
    with pytest.raises(UsageError, match="names repeat"):
        check_inputs((parse_input("x=8"), parse_input("x=8")), batch_size=None, seq_len=None)
