"""A request survives its file, and refuses numbers that no step can have."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.errors import InternalError, UsageError
from dnnmem.profilers.request import Request, parse_args

SIZES = st.none() | st.integers(min_value=1)


@given(
    target=st.text(),
    args=st.dictionaries(st.text(), st.text()),
    batch_size=SIZES,
    seq_len=SIZES,
    inputs=st.lists(st.text()).map(tuple),
    gpu=st.none() | st.text(),
    steps=st.none() | st.integers(min_value=2),
)
def test_every_request_reads_back_equal(**fields):
    request = Request(**fields)
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"target": "a", "colour": 1}', "{}"])
def test_anything_else_is_an_internal_error(text):
    with pytest.raises(InternalError):
        Request.from_json(text)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch_size": 0}, "--batch is 0"),
        ({"batch_size": -8}, "--batch is -8"),
        ({"seq_len": 0}, "--seq is 0"),
        ({"steps": 1}, "--steps is 1; optimizer state appears in the first step"),
        ({"repeats": 0}, "--repeats is 0"),
    ],
)
def test_impossible_numbers_are_refused(fields, said):
    with pytest.raises(UsageError) as caught:
        Request(target="model.py", **fields)
    assert said in str(caught.value)
    assert caught.value.hint


def test_arguments_split_at_the_first_equals_sign():
    assert parse_args(["a=1", "b=", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["width"], "'width' is not name=value"),
        (["=3"], "'=3' is not name=value"),
        (["a b=3"], "is not name=value"),
        (["a=1", "a=2"], "given twice: '1' and '2'"),
    ],
)
def test_bad_arguments_are_refused(pairs, said):
    with pytest.raises(UsageError, match=said):
        parse_args(pairs)


def test_a_request_and_a_target_name_need_no_torch():
    code = (
        "import sys; from dnnmem.profilers.request import Request; from dnnmem.profilers.target import split_target; "
        "Request(target='a.py'); split_target('hf:gpt2'); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
