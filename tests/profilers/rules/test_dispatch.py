"""Kernels hold for as long as their context does, whoever calls the operator."""

from __future__ import annotations

import torch
from torch.nn import functional

from dnnmem.profilers.rules.dispatch import FALL_THROUGH, has_kernel, kernels, operator
from dnnmem.profilers.rules.dropout import DROPOUT
from tests.profilers.recorded import ops_named, step_of


def test_operators_that_a_torch_lacks_are_none():
    assert operator("aten::sum.dim_IntList") is torch.ops.aten.sum.dim_IntList
    assert operator("aten::no_such_operator") is None
    assert has_kernel("aten::mm", "AutocastCUDA")
    assert not has_kernel("aten::relu", "AutocastCUDA")


def test_nothing_may_happen_under_a_key():
    x = torch.ones(2, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        with kernels({("aten::matmul", "AutocastCPU"): FALL_THROUGH, ("aten::mm", "AutocastCPU"): FALL_THROUGH}):
            assert (x @ x).dtype is torch.float32
        assert (x @ x).dtype is torch.bfloat16


def test_dropout_keeps_a_mask_of_booleans():
    def model():
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5))

    def loss(net, batch):
        return functional.dropout(net(batch), 0.1).sum()

    with kernels(DROPOUT):
        trace = step_of(model, loss, lambda n: torch.randn(n, 8))
    assert len(ops_named(trace, "aten.native_dropout.default")) == 2
    assert {s.nbytes for s in trace.storages.values() if s.dtype == "bool" and s.saved} == {4 * 8}


def test_dropout_of_nothing_and_of_all():
    x = torch.ones(3)
    with kernels(DROPOUT):
        assert functional.dropout(x, 0.5, training=False) is x
        assert functional.dropout(x, 0.0).tolist() == [1, 1, 1]
        assert functional.dropout(x, 1.0).tolist() == [0, 0, 0]
