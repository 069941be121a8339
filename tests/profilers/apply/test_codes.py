"""What is made smaller is made again: truth values and places to the bit, numbers to less than a step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dnnmem.estimator.encoding import Encoding
from dnnmem.profilers.apply.codes import Window, decode, encode

WINDOWS = [
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 2), (2, 3), (1, 0), (2, 1)),
    ((2, 2), (2, 2), (0, 0), (1, 1)),
]


def generator():
    found = torch.Generator()
    found.manual_seed(0)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_are_off_by_less_than_a_step(bits, dtype):
    # GIVEN numbers whose last ones fill no group, and groups of one number and of large ones
    x = torch.randn(70_003)
    x[:256], x[256:512] = 7.0, x[256:512] * 1e4
    x = x.to(dtype)
    made = decode(encode(Encoding(kind="codes", bits=bits), x, generator()))
    # THEN each is off by less than its group's step and what the type rounds; constants and the last are exact
    assert made.dtype is dtype
    whole = len(x) // (256 * 8 // bits) * (256 * 8 // bits)
    groups = x[:whole].float().view(-1, 256)
    step = (groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)) / (2**bits - 1)
    apart = (made[:whole].float().view(-1, 256) - groups).abs()
    assert (apart <= step + groups.abs() * torch.finfo(dtype).eps).all()
    assert torch.equal(made[:256], x[:256])
    assert torch.equal(made[whole:], x[whole:])


@pytest.mark.parametrize("elements", [64, 1003])
def test_truth_values_come_back(elements):
    x = torch.randn(elements)
    assert torch.equal(decode(encode(Encoding(kind="sign"), x, generator())), x > 0)
    assert torch.equal(decode(encode(Encoding(kind="bool"), x > 0, generator())), x > 0)


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), WINDOWS)
def test_places_come_back(kernel, stride, padding, dilation):
    images = torch.randn(2, 3, 37, 41)
    _, places = functional.max_pool2d(images, kernel, stride, padding, dilation, return_indices=True)
    window = Window(kernel=kernel, stride=stride, padding=padding, dilation=dilation, width=41)
    packed = encode(Encoding(kind="window"), places, generator(), window=window)
    assert packed.parts["places"].dtype is torch.uint8
    assert torch.equal(decode(packed), places)


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_product_of_projected_rows_is_right_on_average(share):
    # GIVEN a product over rows
    x, y, draw = torch.randn(100, 8), torch.randn(100, 4), generator()
    plain = y.T @ x
    products = [
        y.T @ decode(encode(Encoding(kind="rows", share=share), x.flatten(), draw, columns=8)).view_as(x)
        for _ in range(1024)
    ]
    one = sum(float((product - plain).norm()) for product in products) / 1024
    # THEN the mean is nearer by the root of the number of draws, 32
    assert float((torch.stack(products).mean(0) - plain).norm()) < 1.5 * one / 32
