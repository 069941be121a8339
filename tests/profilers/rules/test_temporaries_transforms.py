"""Fourier transforms need a work area, and copies where cuFFT's plans ask for them; as measured on a virtual GPU."""

from __future__ import annotations

import pytest
import torch

from dnnmem.estimator.devices import find_device
from dnnmem.profilers.rules.gpu import gpu_of
from dnnmem.profilers.rules.temporaries_transforms import TEMPORARIES

aten = torch.ops.aten
PLAIN = (0, True)
"""Not normalized; one side of what is real, or forward."""
GPU = gpu_of(find_device("h100-sxm-80gb"))


def needs(func, x, *args):
    return TEMPORARIES[func](GPU, (x, *args), {}, func(x, *args))


def real(*shape):
    return torch.empty(*shape, device="meta")


def numbers(*shape):
    return torch.empty(*shape, dtype=torch.complex64, device="meta")


@pytest.mark.parametrize(
    ("x", "work"),
    [(real(64, 1024), 64 * 513 * 8), (real(64, 1031), 64 * 4096 * 8), (real(3, 7, 1024), 21 * 513 * 8)],
    ids=["rows", "a prime length is padded", "a batch of rows"],
)
def test_real_numbers_are_half_known(x, work):
    assert needs(aten._fft_r2c.default, x, [x.dim() - 1], *PLAIN).during == [(work,)]


def test_planes_are_transformed_at_once():
    assert needs(aten._fft_c2c.default, numbers(4, 256, 256), [1, 2], *PLAIN).during == [(4 * 256 * 256 * 8,)]


def test_what_lies_around_the_transformed_dimension_is_copied():
    whole = 4 * 256 * 16 * 8
    assert needs(aten._fft_c2c.default, numbers(4, 256, 16), [1], *PLAIN).during == [(whole, whole)]


def test_more_dimensions_than_a_plan_has_take_several():
    found = needs(aten._fft_c2c.default, numbers(2, 4, 8, 16, 32), [1, 2, 3, 4], *PLAIN)
    whole = 2 * 4 * 8 * 16 * 32 * 8
    assert found.beside == (whole,)
    assert found.during == [(whole,), (whole, whole)]


def test_what_becomes_real_is_overwritten_and_so_copied():
    found = needs(aten._fft_c2r.default, numbers(64, 513), [1], 0, 1024)
    assert (found.before, found.during) == ((64 * 513 * 8,), [(64 * 513 * 8,)])
