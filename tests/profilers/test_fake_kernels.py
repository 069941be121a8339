"""Mended fake kernels give blocks of the size that the real ones give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dnnmem.profilers.fake_kernels import REPLACEMENTS, _rnn_workspace
from dnnmem.profilers.tensors import tensors_in
from dnnmem.profilers.values import SmallValues


class Blocks(TorchDispatchMode):
    """Lists the sizes that each operator of some names gives back."""

    def __init__(self, names):
        super().__init__()
        self.names, self.found = names, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        out = func(*args, **(kwargs or {}))
        if any(name in str(func) for name in self.names):
            self.found.append((str(func), [(tuple(t.shape), t.untyped_storage().nbytes()) for t in tensors_in((out,))]))
        return out


def image(*, dtype=torch.float32):
    return torch.randn(2, 6, 8, 8, dtype=dtype, requires_grad=True)


def lstm(**options):
    layer = nn.LSTM(8, 16, **options)
    return layer(torch.randn(5, 3, 8, requires_grad=True))[0].sum()


def half_norm(norm):
    with torch.autocast("cpu", torch.bfloat16):
        return norm(image(dtype=torch.bfloat16)).float().sum()


PROGRAMS = {
    "mse_loss": lambda: F.mse_loss(image(), image()),
    "mse_loss broadcast": lambda: F.mse_loss(image(), image()[:1]),
    "smooth_l1_loss": lambda: F.smooth_l1_loss(image(), image()),
    "binary_cross_entropy": lambda: F.binary_cross_entropy(image().sigmoid(), torch.ones(2, 6, 8, 8)),
    "soft_margin_loss": lambda: F.soft_margin_loss(image(), torch.ones(2, 6, 8, 8)),
    "mse_loss unreduced": lambda: F.mse_loss(image(), image(), reduction="none").sum(),
    "col2im": lambda: F.fold(F.unfold(image(), 3), 8, 3).sum(),
    "native_group_norm": lambda: half_norm(nn.GroupNorm(3, 6)),
    "native_group_norm in half": lambda: (
        nn.GroupNorm(3, 6, dtype=torch.bfloat16)(image(dtype=torch.bfloat16)).float().sum()
    ),
    "native_layer_norm": lambda: half_norm(nn.LayerNorm(8)),
    "native_batch_norm": lambda: half_norm(nn.BatchNorm2d(6)),
    "native_batch_norm plain": lambda: nn.BatchNorm2d(6, affine=False)(image()).sum(),
    "mkldnn_rnn_layer": lstm,
    "mkldnn_rnn_layer both ways": lambda: lstm(bidirectional=True, num_layers=2),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_blocks_are_as_large_as_real_ones(name):
    names = [str(op).removesuffix(".default") for op in REPLACEMENTS]
    with Blocks(names) as real:
        PROGRAMS[name]().backward()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, SmallValues(fake), Blocks(names) as faked:
        PROGRAMS[name]().backward()
    assert faked.found == real.found
    assert any(name.partition(" ")[0] in found for found, _ in real.found)


def test_both_biases_of_an_lstm_get_a_gradient_of_their_own():
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, SmallValues(fake):
        layer = nn.LSTM(8, 16)
        layer(torch.randn(5, 3, 8))[0].sum().backward()
        storages = {p.grad.untyped_storage()._cdata for p in layer.parameters()}
    assert len(storages) == 4


def test_a_long_sequence_is_not_really_run():
    # GIVEN the shapes of a layer over 100,000 steps
    def described(steps):
        f4 = torch.float32
        weights = (((64, 8), f4), ((64, 16), f4), ((64,), f4), ((64,), f4), ((3, 16), f4), ((3, 16), f4))
        return (((steps, 3, 8), f4), *weights, False, 2, 16, 1, True, False, False, True)

    sizes = [_rnn_workspace(described(steps), ()) for steps in (64, 128, 256, 100_000)]
    # THEN its workspace goes on as a line
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])
    assert sizes[3] == sizes[1] + (100_000 - 128) * (sizes[1] - sizes[0]) // 64
