"""Sparse gradients are told from sparse tensors of a model's own."""

from __future__ import annotations

from dataclasses import replace

from dnnmem.estimator.sparse_gradients import has_sparse_gradients
from dnnmem.estimator.trace import Kind, Phase
from tests.estimator.passes.steps import gpt

MADE = "aten._sparse_coo_tensor_with_dims_and_tensors.default"


def with_op(trace, module):
    """`trace` with a sparse tensor made in `module` by the backward pass."""
    last = max(n for n, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD)
    made = replace(trace.ops[last], name=MADE, module=module, reads=(), writes=(), events=(), releases=())
    return replace(trace, ops=(*trace.ops[: last + 1], made, *trace.ops[last + 1 :]))


def test_a_parameter_without_another_gradient_has_a_sparse_one():
    # GIVEN a step in which a module makes a sparse tensor, with dense gradients of its own or without
    plain = gpt(2)
    some = next(s for s in plain.storages.values() if s.kind is Kind.PARAM)
    without = {
        i: replace(s, kind=Kind.TEMP) if s.kind is Kind.GRAD and s.module == some.module else s
        for i, s in plain.storages.items()
    }
    # THEN only the one without has sparse gradients
    assert not has_sparse_gradients(plain)
    assert not has_sparse_gradients(with_op(plain, some.module))
    assert has_sparse_gradients(with_op(replace(plain, storages=without), some.module))
    assert not has_sparse_gradients(with_op(replace(plain, storages=without), ("another",)))
