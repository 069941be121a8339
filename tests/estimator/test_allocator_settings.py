from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.allocator_settings import MIB, AllocatorSettings, block_bytes, parse_settings, segment_bytes
from dnnmem.estimator.errors import UsageError

DEFAULT = AllocatorSettings()


@pytest.mark.parametrize(
    ("nbytes", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (63 * MIB, 63 * MIB, 64 * MIB),
    ],
)
def test_sizes_are_rounded_as_pytorch_rounds_them(nbytes, block, segment):
    assert block_bytes(nbytes, DEFAULT) == block
    assert segment_bytes(block, DEFAULT) == segment


@given(st.integers(1, 2**37))
def test_a_block_is_the_least_multiple_of_512_that_holds_the_request(nbytes):
    block = block_bytes(nbytes, DEFAULT)
    assert block % 512 == 0
    assert block - 512 < nbytes <= block <= segment_bytes(block, DEFAULT)


@given(st.integers(1, 2**37), st.sampled_from([2, 4, 8, 16]))
def test_divisions_round_up_to_a_part_of_a_power_of_two(nbytes, divisions):
    # GIVEN so many divisions between powers of two  WHEN a request above 512 B a division is rounded
    block = block_bytes(nbytes, parse_settings(f"roundup_power2_divisions:{divisions}"))
    # THEN it is the least step that holds it, still a multiple of 512 B
    assert block % 512 == 0
    assert block >= nbytes
    if nbytes > 512 * divisions:
        step = 2 ** (nbytes.bit_length() - 1) // divisions
        assert block % step == 0
        assert block - nbytes < step


@pytest.mark.parametrize(
    ("text", "divisions"),
    [
        ("4", (4,) * 16),
        ("[256:1,512:2,1024:4,>:8]", (1,) * 9 + (2, 4) + (8,) * 5),
        ("[64:8,256:4]", (8,) * 7 + (0, 4) + (0,) * 7),
        ("[1:2,>:4]", (2,) + (4,) * 15),
    ],
)
def test_divisions_by_size_are_filled_as_pytorch_fills_them(text, divisions):
    # the expected rows are what PyTorch 2.14 reports in `allocator_settings` for the same texts
    assert parse_settings(f"roundup_power2_divisions:{text}").roundup_power2_divisions == divisions


def test_all_settings_of_a_text_are_read():
    text = (
        " expandable_segments:True, max_split_size_mb:128 ,garbage_collection_threshold:0.8,large_segment_size_mb:32,"
    )
    text += "max_non_split_rounding_mb:64,per_process_memory_fraction:0.9,backend:native,pinned_num_register_threads:2"
    assert parse_settings(text) == AllocatorSettings(
        expandable_segments=True,
        max_split_bytes=128 * MIB,
        garbage_collection_threshold=0.8,
        large_segment_bytes=32 * MIB,
        max_non_split_rounding_bytes=64 * MIB,
        memory_fraction=0.9,
    )
    assert parse_settings("") == DEFAULT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_split_size_mb:19", "max_split_size_mb is 19; it must be 20 or more"),
        ("max_split_size_mb:many", "max_split_size_mb:many cannot be read"),
        ("large_segment_size_mb:10", "large_segment_size_mb is 10; it must be above 10"),
        ("max_non_split_rounding_mb:5", "max_non_split_rounding_mb is 5; it must be 20 or more"),
        ("garbage_collection_threshold:1.0", "garbage_collection_threshold is 1; it must lie between 0 and 1"),
        ("per_process_memory_fraction:2", "per_process_memory_fraction is 2; it must lie between 0 and 1"),
        ("roundup_power2_divisions:3", "each 0 or a power of 2"),
        ("expandable_segments:maybe", "expandable_segments:maybe cannot be read"),
        ("backend:cudaMallocAsync", "only the allocator backend:native is simulated"),
        ("max_split:20", "allocator setting 'max_split' is not known"),
        ("max_split_size_mb", "'max_split_size_mb' has no value"),
    ],
)
def test_what_pytorch_refuses_is_refused(text, message):
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        parse_settings(text)


def test_a_limit_below_a_larger_large_segment_is_refused_in_any_order():
    for text in ("large_segment_size_mb:64,max_split_size_mb:40", "max_split_size_mb:40,large_segment_size_mb:64"):
        with pytest.raises(UsageError, match="max_split_size_mb is 40; it must be 64 or more"):
            parse_settings(text)
    both = parse_settings("max_split_size_mb:70,large_segment_size_mb:64")
    assert (both.max_split_bytes, both.large_segment_bytes) == (70 * MIB, 64 * MIB)
