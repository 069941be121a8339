"""Codes for the wire: right on average where they are drawn, and never far off."""

from __future__ import annotations

import pytest
import torch

from dnnmem.profilers.apply.gradient_codes import decode, encode_levels, encode_signs

DRAWS = 4000


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 32), (2, 32), (2, 64)])
def test_levels_are_right_on_average(bits, group):
    # GIVEN numbers of any size, a group of zeros among them
    rows = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    rows[1, :32] = 0.0
    drawn = torch.Generator().manual_seed(2)
    # WHEN they are coded many times
    found = torch.stack([decode(*encode_levels(rows, bits, group, drawn), bits) for _ in range(DRAWS)])
    # THEN the mean is the numbers, within five standard deviations of what rounds to one of two levels
    level = (rows.view(-1, group).abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).expand(-1, group).reshape(2, 64)
    assert torch.all((found.mean(0) - rows).abs() <= 5 * level / 2 / DRAWS**0.5 + 1e-6)
    # AND no number is off by more than a level
    assert torch.all((found - rows).abs() <= level * (1 + 1e-5) + 1e-30)


def test_two_bits_are_three_levels():
    rows = torch.tensor([[0.5, -2.0, 0.1, 2.0, -0.3, 1.0, 0.0, -1.0]])
    found = decode(*encode_levels(rows, 2, 8, torch.Generator()), 2)
    assert set(found.flatten().tolist()) <= {-2.0, 0.0, 2.0}


def test_signs_have_the_mean_length_of_their_row():
    rows = torch.tensor([[1.0, -3.0, 0.0, 4.0, -2.0, 2.0, -3.0, 1.0], [0.0] * 8])
    codes, scale = encode_signs(rows)
    assert codes.shape == (2, 1)
    assert decode(codes, scale, 1).tolist() == [[2.0, -2.0, 2.0, 2.0, -2.0, 2.0, -2.0, 2.0], [0.0] * 8]
