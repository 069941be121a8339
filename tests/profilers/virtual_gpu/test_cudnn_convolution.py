"""A convolution is put to cuDNN in torch's words, and answered with the engine that torch takes."""

from __future__ import annotations

import json

import pytest

from dnnmem.profilers.virtual_gpu.cudnn_convolution import (
    DOUBLE,
    FLOAT,
    HALF,
    Call,
    Operand,
    Operation,
    question,
    takes,
)
from dnnmem.profilers.virtual_gpu.cudnn_query import Engine


def call(operation, dtype=FLOAT, **more):
    sizes = {"x": (4, 64, 56, 56), "w": (128, 64, 3, 3), "y": (4, 128, 56, 56)}
    operands = {name: Operand(sizes=size) for name, size in sizes.items()}
    options = {"channels_last": False, **operands, **more}
    return Call(operation=operation, padding=(1, 1), stride=(1, 1), dilation=(1, 1), dtype=dtype, **options)


def test_it_is_the_stubs_own_text():
    # GIVEN what the stub of cuDNN wrote down when torch 2.14.1 ran this convolution
    written = (
        '{"mode":0,"graph":[[17,[[901,1,[0]],[902,3,[4,64,56,56]],[903,3,[200704,3136,56,1]],[906,3,[120]],'
        "[900,3,[32]]]],[17,[[901,1,[0]],[902,3,[128,64,3,3]],[903,3,[576,9,3,1]],[906,3,[119]],[900,3,[32]]]],"
        "[17,[[901,1,[0]],[902,3,[4,128,56,56]],[903,3,[401408,3136,56,1]],[906,3,[121]],[900,3,[32]]]],"
        "[1,[[100,1,[0]],[101,7,[1]],[106,3,[2]],[105,3,[1,1]],[104,3,[1,1]],[102,3,[1,1]],[103,3,[1,1]]]],"
        "[12,[[710,15,[0]],[709,15,[1]],[711,15,[2]],[708,15,[3]],[706,4,[1065353216]],[707,4,[0]]]],"
        "[15,[[801,15,[4]]]]]}"
    )
    # WHEN it is asked without the stub, THEN the text is equal, so that both find the same answers in the cache
    assert json.dumps(question(call(Operation.DATA)), separators=(",", ":")) == written


def test_types_layouts_and_addresses_are_told():
    doubled = question(call(Operation.FORWARD, DOUBLE, x=Operand(sizes=(2, 8, 5, 5), alignment=4), channels_last=True))
    x, _, _, described, operation, _ = doubled["graph"]
    assert x[1][0][2] == [DOUBLE]
    assert x[1][2][2] == [200, 1, 40, 8]
    assert x[1][4][2] == [4]
    assert described[1][0][2] == [DOUBLE]
    assert operation[1][4] == [700, 5, [0x3FF0000000000000]]


@pytest.mark.parametrize(
    ("notes", "dtype", "tf32", "deterministic", "taken"),
    [
        (0, FLOAT, False, True, True),
        (1, FLOAT, True, False, True),
        (1, FLOAT, False, False, False),
        (1, HALF, False, False, True),
        (2, FLOAT, True, False, False),
        (16, HALF, True, True, False),
        (16, HALF, True, False, True),
    ],
)
def test_the_users_wishes_leave_engines_out(notes, dtype, tf32, deterministic, taken):
    assert takes(Engine(1, 0, notes, 0), dtype, tf32=tf32, deterministic=deterministic) is taken


def test_an_engine_without_a_plan_is_not_taken():
    assert not takes(Engine(1, -1, 0, 0), HALF, tf32=True, deterministic=False)
