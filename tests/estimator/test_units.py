from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.units import format_bytes, format_flops, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512 B", 512),
        ("1k", 1024),
        ("1KB", 1000),
        ("1.5 MB", 1_500_000),
        ("1.5MiB", 3 * 2**19),
        ("24GiB", 24 * 2**30),
        (" 80 gb ", 80 * 10**9),
        ("2TiB", 2**41),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_sizes_are_read_with_their_units(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e9", "1 2", "24 gigs", "1,5 GB", "nan", "0x10", ".", "9" * 400, "٣"]
)
def test_what_is_no_size_is_refused_with_examples(text):
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_bytes(text)
    assert repr(text) in caught.value.message
    assert "24GiB" in caught.value.hint


@given(st.text())
def test_any_text_is_a_size_or_a_usage_error(text):
    with suppress(UsageError):
        assert parse_bytes(text) >= 0


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20, "1.0 MiB"),
        (2**30, "1.00 GiB"),
        (5000 * 2**30, "5,000.00 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(nbytes, text):
    assert format_bytes(nbytes) == text


@given(st.integers(0, 2**50))
def test_shown_bytes_read_back_to_what_is_shown(nbytes):
    # GIVEN any size  WHEN it is shown and read again  THEN it is off by less than what rounding hides
    again = parse_bytes(format_bytes(nbytes).replace(",", ""))
    assert abs(again - nbytes) <= max(nbytes, 1024) * 0.06


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 us"),
        (4.2e-4, "420 us"),
        (0.0123, "12.3 ms"),
        (2.5, "2.5 s"),
        (125.0, "125 s"),
        (0.0009996, "1 ms"),
        (86400.0, "86,400 s"),
    ],
)
def test_seconds_are_shown_in_the_unit_that_fits(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (None, "-"),
        (0, "0"),
        (999, "999"),
        (1500, "1.5 K"),
        (999_700, "1 M"),
        (2 * 10**12, "2 T"),
        (3 * 10**18, "3,000 P"),
    ],
)
def test_flops_are_shown_in_decimal_units(flops, text):
    assert format_flops(flops) == text
