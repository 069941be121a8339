"""Random programs on PyTorch's own allocator and on ours, step by step; `allocator_programs.py` runs many."""

from __future__ import annotations

import pytest

from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.accuracy.allocator_programs import run


@pytest.mark.parametrize(
    "setting", ["", "expandable_segments:True", "max_split_size_mb:64,max_non_split_rounding_mb:40"]
)
def test_segments_statistics_and_refusals_are_pytorchs(setting):
    if reason := unavailable():
        pytest.skip(f"no virtual GPU: {reason}")
    # WHEN
    found = run(setting, 12, seed=3)
    # THEN
    assert found["difference"] is None, found
    assert found["programs"] == 12
    assert min(found.get(name, 0) for name in ("retries", "capture", "begin", "use")) > 0
