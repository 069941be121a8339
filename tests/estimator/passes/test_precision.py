"""Types at rest: master weights beside what computes, and gradients that are wider than they were recorded."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.precision import apply
from dnnmem.estimator.plan import Plan, Precision
from dnnmem.estimator.trace import Kind, Phase
from tests.estimator.passes.steps import LLAMA, gpt

BF16 = {**LLAMA, "dtype": "bfloat16"}


def owned(trace, kind):
    return sum(trace.storages[i].nbytes for i in trace.pinned if trace.storages[i].kind is kind)


def test_master_weights_make_sixteen_bytes_a_parameter():
    # GIVEN a step in bfloat16  WHEN weights and gradients rest in float32, as Megatron has them
    trace = gpt(3, **BF16)
    found = apply(trace, Plan(precision=Precision(param="float32", grad="float32")))
    found.check()
    # THEN 2 bytes compute, 4 are the master's, 8 the moments', 4 the gradient's
    count = owned(trace, Kind.PARAM) // 2
    assert owned(found, Kind.PARAM) == 2 * count
    assert owned(found, Kind.OPTIMIZER) == pytest.approx(12 * count, rel=0.001)
    touched = {i for op in found.ops for i in op.writes if found.storages[i].kind is Kind.GRAD}
    assert sum(found.storages[i].nbytes for i in touched) == 4 * count
    # AND the update works on the master, and casts back
    assert found.ops[-1].moved_bytes == 6 * count
    before, after = (sum(op.moved_bytes for op in t.ops if op.phase is Phase.STEP) for t in (trace, found))
    assert after == pytest.approx(2 * before + 6 * count, rel=0.01)


def test_types_as_recorded_change_nothing():
    trace = gpt(3)
    assert apply(trace, Plan(precision=Precision(param="float32", grad="float32"))) is trace


def test_narrower_weights_at_rest_are_refused():
    with pytest.raises(UnsupportedError, match="narrower than the float32"):
        apply(gpt(3), Plan(precision=Precision(param="bfloat16")))
