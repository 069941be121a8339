"""`--arg name=value` reaches the functions that take it, as the value that they want."""

from __future__ import annotations

import inspect
from typing import Literal

import pytest
import torch

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.targets.arguments import convert, distribute, literal, near, parameters, takes_any


def parameter(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty):
    return inspect.Parameter("a", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


@pytest.mark.parametrize(
    ("given", "text", "value"),
    [
        (parameter(int), "64", 64),
        (parameter(float), "1e-3", 1e-3),
        (parameter(float), "3", 3.0),
        (parameter(bool), "false", False),
        (parameter(bool), "1", True),
        (parameter(bool), "Yes", True),
        (parameter(str), "12", "12"),
        (parameter(int | None), "none", None),
        (parameter(int | None), "7", 7),
        (parameter(int | str), "seven", "seven"),
        (parameter(str | int), "7", 7),
        (parameter(Literal["relu", "gelu"]), "gelu", "gelu"),
        (parameter(Literal[1, 2]), "2", 2),
        (parameter(tuple[int, ...]), "(1, 2)", (1, 2)),
        (parameter(tuple), "[1, 2]", (1, 2)),
        (parameter(list[int]), "(3,)", [3]),
        (parameter(torch.dtype), "bf16", torch.bfloat16),
        (parameter(default=1), "5", 5),
        (parameter(default=0.5), "1", 1.0),
        (parameter(default=False), "on", True),
        (parameter(default=None), "5", 5),
        (parameter(), "false", False),
        (parameter(), "gelu", "gelu"),
        (None, "2.5", 2.5),
    ],
)
def test_a_value_becomes_what_the_parameter_wants(given, text, value):
    found = convert("a", text, given, "f")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (parameter(int), "1.5"),
        (parameter(bool), "2"),
        (parameter(bool), "maybe"),
        (parameter(int | None), "many"),
        (parameter(Literal["relu"]), "gelu"),
        (parameter(tuple), "3"),
        (parameter(torch.dtype), "float99"),
        (parameter(torch.dtype), "nn"),
        (parameter(default=3), "x"),
    ],
)
def test_a_value_of_another_kind_is_refused(given, text):
    with pytest.raises(UsageError, match="--arg a="):
        convert("a", text, given, "f")


def test_an_argument_goes_to_every_function_that_names_it():
    def one(width: int, depth=2): ...
    def two(batch_size, width: float = 1): ...

    assert distribute({"width": "3", "depth": "4"}, {"one": one, "two": two}) == {
        "one": {"width": 3, "depth": 4},
        "two": {"width": 3.0},
    }


def test_kwargs_take_only_what_no_function_names():
    def one(**options): ...
    def two(width): ...

    assert distribute({"width": "3", "other": "x"}, {"one": one, "two": two}) == {
        "one": {"other": "x"},
        "two": {"width": 3},
    }


def test_string_annotations_are_resolved_and_unknown_names_are_no_hint():
    def known(a: int): ...
    def unknown(a: NoSuchType): ...  # noqa: F821  # the case in hand

    assert parameters(known)["a"].annotation is int
    assert convert("a", "3", parameters(unknown)["a"], "f") == 3


def test_a_class_is_asked_for_its_constructor():
    assert list(parameters(torch.nn.Linear))[:2] == ["in_features", "out_features"]
    assert not takes_any(torch.nn.Linear)


def test_nothing_near_says_nothing():
    assert near("zzz", ["width"]) == ""


@pytest.mark.parametrize("text", ["__import__('os')", "a b", "", "1 +"])
def test_a_literal_never_runs_code(text):
    assert literal(text) == text
