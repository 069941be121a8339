"""Autocast for CUDA on tensors of the CPU gives the types that it gives on CUDA."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dnnmem.profilers.rules.autocast import cuda_autocast

X = torch.rand(4, 4).bfloat16()
Y = torch.rand(4, 4)


@pytest.fixture(autouse=True)
def _cuda():
    with cuda_autocast():
        yield


@pytest.mark.parametrize(
    ("name", "run", "kind"),
    [
        ("product", lambda: Y @ Y, torch.bfloat16),
        ("linear", lambda: functional.linear(Y, Y), torch.bfloat16),
        ("exponential", X.exp, torch.float32),
        ("power", lambda: X**2, torch.float32),
        ("softmax", lambda: X.softmax(-1), torch.float32),
        ("logarithmic softmax", lambda: functional.log_softmax(X, -1), torch.float32),
        ("layer norm", lambda: functional.layer_norm(X, (4,)), torch.float32),
        ("sum", X.sum, torch.float32),
        ("sum over a dimension", lambda: X.sum(0), torch.float32),
        ("sum of a wanted type", lambda: X.sum(0, dtype=torch.bfloat16), torch.bfloat16),
        ("norm", X.norm, torch.float32),
        ("loss", lambda: functional.mse_loss(X, X), torch.float32),
        ("addition", lambda: X + X, torch.bfloat16),
        ("gelu", lambda: functional.gelu(X), torch.bfloat16),
        ("interpolation", lambda: functional.interpolate(X[None, None], 8), torch.float32),
        ("padding, which only the CPU casts", lambda: functional.pad(X[None], (1, 1), "reflect"), torch.bfloat16),
        ("the widest of two", lambda: torch.addcmul(Y, X, X), torch.float32),
    ],
)
def test_types_are_those_of_cuda(name, run, kind):
    with torch.autocast("cuda", torch.bfloat16):
        assert run().dtype is kind, name
    assert (Y @ Y).dtype is torch.float32


def test_cuda_casts_to_float16_unless_told():
    with torch.autocast("cuda"):
        assert (Y @ Y).dtype is torch.float16
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") is torch.float16
    assert not torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", enabled=False):
        assert (Y @ Y).dtype is torch.float32


def test_weights_are_cast_once():
    weight = torch.rand(4, 4, requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        first, second = Y @ weight, Y @ weight
    seen = {id(f[0]) for out in (first, second) for f in out.grad_fn.next_functions if f[0] is not None}
    assert len(seen) == 1


def test_binary_cross_entropy_is_forbidden_as_on_cuda():
    with torch.autocast("cuda", torch.bfloat16), pytest.raises(RuntimeError, match="unsafe to autocast"):
        functional.binary_cross_entropy(Y.sigmoid(), Y)
