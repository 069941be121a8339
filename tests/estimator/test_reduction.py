"""Reductions take the buffers that torch's own take."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.reduction import Threads, buffers

RECORDED = Path(__file__).parent / "data" / "reduction_buffers.txt"
H100 = Threads(sm_count=132, per_sm=2048)


def numbers(text):
    return tuple(int(n) for n in text.split(",")) if text != "-" else ()


def test_buffers_are_those_that_torch_allocated():
    # GIVEN what torch allocated for sums and variances over many layouts
    lines = [line for line in RECORDED.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 300
    for line in lines:
        gpu, sizes, strides, dims, accumulator, wanted = map(numbers, line.split())
        threads = Threads(sm_count=gpu[0], per_sm=gpu[1])
        # THEN the rule says the same
        found = buffers((sizes, strides), dims, gpu=threads, accumulator_bytes=accumulator[0])
        assert found == wanted, line


@given(st.integers(1, 1 << 16), st.integers(1, 1 << 12))
def test_a_wider_accumulator_takes_as_much_more(rows, columns):
    layout = (rows, columns), (columns, 1)
    narrow, wide = (buffers(layout, (0,), gpu=H100, accumulator_bytes=n) for n in (4, 16))
    assert len(narrow) == len(wide)
    if narrow:
        assert wide == (4 * narrow[0], narrow[1])


@given(st.integers(1, 1 << 24))
def test_few_values_need_no_buffer(n):
    found = buffers(((n,), (1,)), (), gpu=H100)
    assert found == () if n < 256 * 16 else len(found) in {0, 2}
